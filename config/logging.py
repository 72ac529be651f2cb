"""Structured logs on standard error: one line an event, for a person (console) or a program (json)."""

import logging
import sys
from contextlib import suppress
from typing import TextIO, cast

import structlog


class Unbreakable:
    """A stream whose reader may be gone and whose disk may be full: then what was to be logged is lost, and no more.

    A process that outlives its supervisor by a moment still answers requests, and must not fail them for want of a log.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written; returns the length of `text` whatever became of it."""
        with suppress(OSError, ValueError):  # ValueError: the stream was closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if that is possible."""
        with suppress(OSError, ValueError):
            self._stream.flush()


def configure_logging(log_format: str, level: str) -> None:
    """Make structlog write lines of `log_format` ("console" or "json") from `level` upward.

    What libraries log through `logging` comes in the same form, from WARNING upward.
    """
    threshold = getattr(logging, level.upper(), logging.INFO)
    stream = cast(TextIO, Unbreakable(sys.stderr))
    rendered: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
    ]
    annotated: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=annotated + rendered,
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*annotated, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[handler])
