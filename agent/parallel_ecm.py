"""Several GMP-ECM processes on the curves of one stage task, and their combined output.

Each process writes its output to a file. The file survives the agent, so the curves of a killed agent are read from it.
"""

import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from agent import gmp_ecm
from agent.ecm_run import MAX_RAW_OUTPUT, process_start_time
from agent.gmp_ecm import EcmFactor, EcmFailedError, EcmOutput
from agent.stage_task import StageTask

POLL_SECONDS = 0.2


@dataclass
class ProcessSpec:
    """One process of a task: its command line, the number that it reads, and the file that gets its output."""

    command: list[str]
    number: str
    output: Path


@dataclass
class CombinedOutput:
    """The outputs of a task's processes together; `sigmas` are those of the completed curves."""

    curves_completed: int = 0
    sigmas: list[str] = field(default_factory=list)
    factors: list[EcmFactor] = field(default_factory=list)
    version: str | None = None
    parametrization: int | None = None
    found_input_number: bool = False
    raw: bytes = b""


class _OutputReader:
    """Parses an output file while it grows."""

    def __init__(self, path: Path) -> None:
        self.path, self.output, self.sigmas = path, EcmOutput(), list[str]()
        self._offset = 0
        self.raw = b""

    def read_new_lines(self) -> None:
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return
        complete = content[: content.rfind(b"\n") + 1]  # the rest of an incomplete line is read the next time
        self._offset += len(complete)
        self.raw = (self.raw + complete)[-MAX_RAW_OUTPUT:]
        for line in complete.decode("utf-8", "replace").splitlines():
            if self.output.feed(line) and self.output.last_sigma:
                self.sigmas.append(self.output.last_sigma)


def read_outputs(paths: Sequence[Path]) -> CombinedOutput:
    """Parse output files and combine them."""
    readers = [_OutputReader(path) for path in paths]
    for reader in readers:
        reader.read_new_lines()
    return _combine(readers)


def _combine(readers: Sequence[_OutputReader]) -> CombinedOutput:
    combined = CombinedOutput()
    for reader in readers:
        output = reader.output
        combined.curves_completed += output.curves_completed
        combined.sigmas += reader.sigmas
        combined.factors += output.factors
        combined.version = combined.version or output.version
        if combined.parametrization is None:
            combined.parametrization = output.parametrization
        combined.found_input_number |= output.found_input_number
        combined.raw = (combined.raw + reader.raw)[-MAX_RAW_OUTPUT:]
    return combined


def run_processes(
    task: StageTask,
    specs: Sequence[ProcessSpec],
    is_stopped: Callable[[], bool],
    on_poll: Callable[[CombinedOutput], None],
) -> CombinedOutput:
    """Run the processes in parallel until all have ended, one finds a factor, or `is_stopped()`.

    The task records the processes before they get their number. `on_poll` gets the output so far every POLL_SECONDS.
    Raises EcmFailedError if a process fails; the other processes are killed then.
    """
    running: list[tuple[ProcessSpec, subprocess.Popen[bytes], IO[bytes]]] = []
    readers = [_OutputReader(spec.output) for spec in specs]
    try:
        for spec in specs:
            running.append((spec, *_start_process(spec)))
        task.save(processes=[(process.pid, process_start_time(process.pid)) for _, process, _ in running])
        # If the agent dies before this, a process that the task does not record ends without its number.
        for spec, process, _ in running:
            _write_number(process, spec.number)
        while True:
            ended = all(process.poll() is not None for _, process, _ in running)
            for reader in readers:
                reader.read_new_lines()
            combined = _combine(readers)
            on_poll(combined)
            if ended or is_stopped() or combined.factors:
                break
            time.sleep(POLL_SECONDS)
    finally:
        for _, process, file in running:
            if process.poll() is None:
                process.kill()
            process.wait()
            file.close()
    for reader in readers:
        reader.read_new_lines()
    combined = _combine(readers)
    if not is_stopped() and not combined.factors:
        for (spec, process, _), reader in zip(running, readers, strict=True):
            status = process.returncode
            if status < 0 or status & gmp_ecm.ERROR_BIT or reader.output.version is None:
                last_output = reader.raw[-300:].decode("utf-8", "replace").strip().replace("\n", " / ") or "none"
                raise EcmFailedError(f"{spec.command[0]} ended with status {status}; last output: {last_output}")
    return combined


def _start_process(spec: ProcessSpec) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    file = spec.output.open("ab")
    try:
        process = subprocess.Popen(
            spec.command,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            # In a session of its own it does not get the terminal's Ctrl-C: the agent decides when its curves end.
            start_new_session=True,
        )
    except OSError as error:
        file.close()
        raise EcmFailedError(f"{spec.command[0]} could not be started: {error.strerror}") from error
    return process, file


def _write_number(process: subprocess.Popen[bytes], number: str) -> None:
    if process.stdin is None:
        return
    # The output of a process that ended before it read the number says why.
    with suppress(BrokenPipeError):
        process.stdin.write(number.encode() + b"\n")
    with suppress(BrokenPipeError):
        process.stdin.close()


def split_curves(curves: int, threads: int) -> list[int]:
    """Divide curves among at most `threads` processes as evenly as possible; each gets at least one curve."""
    processes = min(curves, threads)
    return [curves // processes + (place < curves % processes) for place in range(processes)]


def build_stage_payload(
    task: StageTask, output: CombinedOutput, *, b2: int | None, curves: int, **more: Any
) -> dict[str, Any]:
    """Return the body of POST /api/v1/submit_result for a task's curves.

    Its execution time is the sum over the processes: from the start of the task to the last change of each output.
    """
    fields = task.fields
    outputs = [task.path / name for name in fields["outputs"]]
    seconds = sum(max(0.0, path.stat().st_mtime - fields["started"]) for path in outputs if path.exists())
    requested = fields["parametrization"]
    return {
        "client_id": fields["client_id"],
        "composite": fields["composite"],
        "method": "ecm",
        "program": "gmp-ecm",
        "program_version": output.version,
        "parameters": {
            "b1": fields["b1"],
            "b2": b2,
            "curves": curves,
            "parametrization": output.parametrization if output.parametrization is not None else requested,
            "sigma": output.sigmas or None,
        },
        "results": {
            "curves_completed": curves,
            "execution_time": round(seconds, 3),
            "factors_found": [{"factor": factor.value, "sigma": factor.sigma} for factor in output.factors],
        },
        "raw_output": output.raw.decode("utf-8", "ignore"),
        **more,
    }
