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
    """Make structlog write lines of `log_format` ("console" or "json") from `level` upward."""
    threshold = getattr(logging, level.upper(), logging.INFO)
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, Unbreakable(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(threshold, logging.WARNING), stream=sys.stderr)
