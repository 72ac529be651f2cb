"""Structured logs on standard error: one line for each event, for a person (console) or for a program (json).

Several processes write to one log. Each line is one write of the operating system, and a lock keeps lines apart that
are longer than what a pipe takes in one piece.
"""

import contextlib
import errno
import fcntl
import io
import logging
import math
import os
import select
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO, cast

import structlog

# Seconds that a line waits for other processes to write theirs; then it is written without a lock.
LOCK_TIMEOUT = 0.5
# Seconds without a lock after that: a process that is stopped while it holds the lock must not slow down all others.
PAUSE_AFTER_TIMEOUT = 30.0
# Seconds that a line waits for a reader, if somebody made the stream non-blocking.
WRITE_TIMEOUT = 1.0

# Record locks belong to a process, so its threads need a lock of their own. A signal handler may log, too: RLock.
_thread_lock = threading.RLock()


def _replace_thread_lock() -> None:
    global _thread_lock
    _thread_lock = threading.RLock()


# Another thread may have held the lock at the time of the fork; in the child it would never release it.
os.register_at_fork(after_in_child=_replace_thread_lock)


class SafeStream:
    """A stream that writes each text in one piece and raises no error; a text that cannot be written is lost.

    The reader may be gone, the disk may be full, and the stream may be closed: a process still answers requests then.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._no_lock_until = 0.0
        self._depth = 0
        self._line_is_torn = False

    def write(self, text: str) -> int:
        """Write `text` if possible; return its length in any case."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
            if self._stream is not None:
                self._write(self._stream, text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream if possible."""
        with contextlib.suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.flush()

    def _write(self, stream: TextIO, text: str) -> None:
        try:
            fd = stream.fileno()
        except io.UnsupportedOperation:  # a stream in memory
            stream.write(text)
            return
        data = text.encode(stream.encoding or "utf-8", "backslashreplace")
        thread_lock = _thread_lock
        has_thread_lock = thread_lock.acquire(timeout=LOCK_TIMEOUT)
        try:
            with self._locked(fd):
                self._write_bytes(fd, data)
        finally:
            if has_thread_lock:
                thread_lock.release()

    @contextlib.contextmanager
    def _locked(self, fd: int) -> Iterator[None]:
        """Lock the file or pipe `fd` against other processes, if that is possible within LOCK_TIMEOUT.

        The lock is a record lock (fcntl) of the file or pipe itself: all processes that write to it know it, whether
        they inherited the descriptor from each other or opened the file, and the kernel releases it when they die.
        """
        if self._depth:  # a signal handler logs while its own thread writes
            yield
            return
        is_locked = self._lock(fd)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if is_locked:
                fcntl.lockf(fd, fcntl.LOCK_UN)

    def _lock(self, fd: int) -> bool:
        """Lock `fd`; return whether that succeeded."""
        now = time.monotonic()
        deadline, pause = now + LOCK_TIMEOUT, 0.0001
        while now >= self._no_lock_until:
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in {errno.EACCES, errno.EAGAIN}:
                    self._no_lock_until = math.inf  # this kind of file has no locks
                    return False
            else:
                return True
            if now >= deadline:
                self._no_lock_until = now + PAUSE_AFTER_TIMEOUT
                return False
            time.sleep(pause)
            pause = min(2 * pause, 0.005)
            now = time.monotonic()
        return False

    def _write_bytes(self, fd: int, data: bytes) -> None:
        """Write all of `data`, in one system call unless the stream is non-blocking or a signal interrupts it."""
        rest = memoryview(b"\n" + data if self._line_is_torn else data)
        deadline = time.monotonic() + WRITE_TIMEOUT
        started = False
        try:
            while rest:
                try:
                    count = os.write(fd, rest)
                except BlockingIOError:
                    remaining = deadline - time.monotonic()
                    if remaining <= 0 or not select.select([], [fd], [], remaining)[1]:
                        return
                else:
                    started, rest = True, rest[count:]
        finally:
            # The next line must not continue this one.
            if started:
                self._line_is_torn = bool(rest)


def configure_logging(log_format: str, level: str) -> None:
    """Make structlog write lines of `log_format` ("console" or "json"), from `level` upward, to standard error.

    Lines of libraries that use `logging` or `warnings` have the same form, from WARNING upward.
    """
    threshold = getattr(logging, level.upper(), logging.INFO)
    stream = cast(TextIO, SafeStream(sys.stderr))
    rendered: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=_is_terminal(sys.stderr)),
    ]
    annotated: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=annotated + rendered,
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(stream),
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
    logging.captureWarnings(True)


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False
