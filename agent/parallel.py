"""Several GMP-ECM processes on the curves of one task: started, watched, and their outputs taken together.

Each writes its output into a file, which outlives us: what a killed agent's processes had done is read from there.
"""

import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from agent import gmp_ecm
from agent.gmp_ecm import EcmFailed, Factor, Output
from agent.run import MAX_RAW_OUTPUT, born
from agent.tasks import Task

LOOK_EVERY = 0.2


@dataclass
class Part:
    """One process of a task: its command, what it reads, and the file that its output goes to."""

    command: list[str]
    number: str
    output: Path


@dataclass
class Together:
    """What the outputs of a task say: curves, sigmas of those completed, factors, and GMP-ECM's version."""

    curves_completed: int = 0
    sigmas: list[str] = field(default_factory=list)
    factors: list[Factor] = field(default_factory=list)
    version: str | None = None
    parametrization: int | None = None
    found_input_number: bool = False
    raw: bytes = b""


class _Reader:
    """An output file, read as it grows."""

    def __init__(self, path: Path) -> None:
        self.path, self.output, self.sigmas = path, Output(), list[str]()
        self._place = 0
        self.raw = b""

    def look(self) -> None:
        try:
            with self.path.open("rb") as file:
                file.seek(self._place)
                content = file.read()
        except FileNotFoundError:
            return
        whole = content[: content.rfind(b"\n") + 1]  # of a line that is still being written the rest comes later
        self._place += len(whole)
        self.raw = (self.raw + whole)[-MAX_RAW_OUTPUT:]
        for line in whole.decode("utf-8", "replace").splitlines():
            if self.output.feed(line) and self.output.last_sigma:
                self.sigmas.append(self.output.last_sigma)


def read_outputs(paths: Sequence[Path]) -> Together:
    """What these outputs say."""
    readers = [_Reader(path) for path in paths]
    for reader in readers:
        reader.look()
    return _together(readers)


def _together(readers: Sequence[_Reader]) -> Together:
    together = Together()
    for reader in readers:
        output = reader.output
        together.curves_completed += output.curves_completed
        together.sigmas += reader.sigmas
        together.factors += output.factors
        together.version = together.version or output.version
        if together.parametrization is None:
            together.parametrization = output.parametrization
        together.found_input_number |= output.found_input_number
        together.raw = (together.raw + reader.raw)[-MAX_RAW_OUTPUT:]
    return together


def run_parts(
    task: Task, parts: Sequence[Part], stopped: Callable[[], bool], on_look: Callable[[Together], None]
) -> Together:
    """Run the parts side by side until all are done, one finds a factor, or they are `stopped`.

    Who runs is noted in the task first. `on_look` is told several times a second what the outputs say. Raises EcmFailed
    if a process fails; the others are ended then.
    """
    running: list[tuple[Part, subprocess.Popen[bytes], IO[bytes]]] = []
    readers = [_Reader(part.output) for part in parts]
    try:
        for part in parts:
            running.append((part, *_start(part)))
        task.save(processes=[(process.pid, born(process.pid)) for _, process, _ in running])
        # Only now: a process that nobody knows of ends without its number.
        for part, process, _ in running:
            _tell(process, part.number)
        while True:
            ended = all(process.poll() is not None for _, process, _ in running)
            for reader in readers:
                reader.look()
            together = _together(readers)
            on_look(together)
            if ended or stopped() or together.factors:
                break
            time.sleep(LOOK_EVERY)
    finally:
        for _, process, file in running:
            if process.poll() is None:
                process.kill()
            process.wait()
            file.close()
    for reader in readers:
        reader.look()
    together = _together(readers)
    if not stopped() and not together.factors:
        for (part, process, _), reader in zip(running, readers, strict=True):
            status = process.returncode
            if status < 0 or status & gmp_ecm.ERROR_BIT or reader.output.version is None:
                said = reader.raw[-300:].decode("utf-8", "replace").strip().replace("\n", " / ") or "nothing"
                raise EcmFailed(f"{part.command[0]} ended with status {status}; it said: {said}")
    return together


def _start(part: Part) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    file = part.output.open("ab")
    try:
        process = subprocess.Popen(
            part.command,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            # A session of its own: the terminal's Ctrl-C is for the agent, which decides what becomes of the curves.
            start_new_session=True,
        )
    except OSError as error:
        file.close()
        raise EcmFailed(f"{part.command[0]} could not be started: {error.strerror}") from error
    return process, file


def _tell(process: subprocess.Popen[bytes], number: str) -> None:
    assert process.stdin
    # One that ended before it read the number says why in its output.
    with suppress(BrokenPipeError):
        process.stdin.write(number.encode() + b"\n")
    with suppress(BrokenPipeError):
        process.stdin.close()


def shares(curves: int, threads: int) -> list[int]:
    """So many curves over so many processes, as evenly as it goes, none with nothing to do."""
    threads = min(curves, threads)
    return [curves // threads + (place < curves % threads) for place in range(threads)]


def result_payload(task: Task, together: Together, *, b2: int | None, curves: int, **more: Any) -> dict[str, Any]:
    """The body of POST /api/v1/submit_result for a task's curves.

    Its seconds are those of all its processes together, from the task's beginning to their last words.
    """
    said = task.said
    outputs = [task.path / name for name in said["outputs"]]
    seconds = sum(max(0.0, path.stat().st_mtime - said["started"]) for path in outputs if path.exists())
    own = said["parametrization"]
    return {
        "client_id": said["client_id"],
        "composite": said["composite"],
        "method": "ecm",
        "program": "gmp-ecm",
        "program_version": together.version,
        "parameters": {
            "b1": said["b1"],
            "b2": b2,
            "curves": curves,
            "parametrization": together.parametrization if together.parametrization is not None else own,
            "sigma": together.sigmas or None,
        },
        "results": {
            "curves_completed": curves,
            "execution_time": round(seconds, 3),
            "factors_found": [{"factor": factor.value, "sigma": factor.sigma} for factor in together.factors],
        },
        "raw_output": together.raw.decode("utf-8", "ignore"),
        **more,
    }
