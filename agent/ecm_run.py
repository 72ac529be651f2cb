"""One run of GMP-ECM, from the order to a payload in the spool.

    1  the order is written to a journal in the spool
    2  each line of GMP-ECM is written to the journal, and then parsed
    3  the payload, which depends on the journal alone, is written to `pending/`
    4  the journal is deleted

A process killed at any of these steps leaves a journal or a pending entry. From a journal recover_runs() makes the same
payload under the same key; both are sent at the next start.
"""

import contextlib
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from agent import gmp_ecm, local_lease, spool
from agent.gmp_ecm import EcmFailedError, EcmOutput
from agent.terminal import count_of
from models.wire.results import SubmitResult

MAX_RAW_OUTPUT = 64 * 1024  # bytes: a result has the end of GMP-ECM's output, as much as the server keeps


@dataclass(frozen=True)
class EcmOrder:
    """What to run, in whose name, and where to send the result.

    `b2` None means GMP-ECM's default, 0 stage 1 only. `work_id` is the lease that the curves belong to.
    """

    server: str
    client_id: str
    composite: str
    b1: int
    curves: int
    b2: int | None = None
    parametrization: int | None = None
    sigma: str | None = None
    work_id: str | None = None


def check_order(order: EcmOrder) -> None:
    """Raise ValueError for an order whose result the server would refuse, or that GMP-ECM would misread.

    A typing error should be found before hours of curves are run.
    """
    if not order.composite.isascii() or not order.composite.isprintable() or set(order.composite) & set(" \\"):
        raise ValueError(f"number {order.composite[:60]!r}: write it without spaces, such as 2^1277-1 or (10^71-1)/9")
    SubmitResult.model_validate(build_payload(order, []))
    ecm_command(order, Path("ecm"))


class StopFlag:
    """Ends a run early. request_stop() may be called from a signal handler or another thread."""

    def __init__(self) -> None:
        self.stop_requested = False
        self._process: subprocess.Popen[str] | None = None

    def request_stop(self) -> None:
        self.stop_requested = True
        if self._process:
            self._process.kill()

    def watch(self, process: subprocess.Popen[str]) -> None:
        """Set the process that request_stop() kills; kill it now if the stop was requested before."""
        self._process = process
        if self.stop_requested:
            process.kill()


def run_curves(
    order: EcmOrder,
    ecm: Path,
    root: Path,
    *,
    stop: StopFlag | None = None,
    on_line: Callable[[EcmOutput, bool], None] = lambda output, curve_done: None,
    on_spooled: Callable[[spool.SpoolEntry], None] = lambda entry: None,
) -> tuple[EcmOutput, spool.SpoolEntry | None]:
    """Run GMP-ECM until its curves are done, a factor is found, or `stop` is requested, and spool the result.

    `on_line` gets the output so far after every line, and whether the line completed a curve. `on_spooled` gets the
    entry; it runs before the journal is deleted, so recover_runs() can repeat it after a crash. Returns the whole
    output, and the entry in the spool, locked for the caller, or None if no curve was completed. Raises EcmFailedError
    if GMP-ECM fails; the curves completed before are pending then.
    """
    stop = stop or StopFlag()
    spool.prepare_spool(root)
    key = str(uuid4())
    output = EcmOutput()
    process = start_ecm(order, ecm)
    stdin, stdout = process.stdin, process.stdout
    try:
        if stdin is None or stdout is None:
            raise EcmFailedError(f"{ecm} was started without pipes")
        stop.watch(process)
        journal = spool.Journal(root, key, asdict(order), (process.pid, process_start_time(process.pid)))
        started = time.monotonic()
        try:
            stdin.write(order.composite + "\n")
            stdin.close()
        except BrokenPipeError:
            pass  # GMP-ECM ended before it read the number, and its output says why
        for text in stdout:
            line = text.rstrip("\r\n").replace("\0", "")
            journal.append(time.monotonic() - started, line)
            on_line(output, output.feed(line))
        status = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        if stdout:
            stdout.close()
    entry = store_result(order, key, root, journal.records)
    if entry:
        on_spooled(entry)
    journal.remove()
    if not stop.stop_requested and (status < 0 or status & gmp_ecm.ERROR_BIT or output.version is None):
        if entry:
            entry.release()
        last_lines = " / ".join(record["line"] for record in journal.records[-3:]) or "none"
        completed = count_of(output.curves_completed, "completed curve")
        raise EcmFailedError(f"{ecm} ended with status {status} after {completed}; last output: {last_lines[-300:]}")
    return output, entry


def ecm_command(order: EcmOrder, ecm: Path) -> list[str]:
    """Return GMP-ECM's command line for an order. Raises ValueError if the order contradicts itself."""
    return gmp_ecm.curves_command(
        ecm,
        b1=order.b1,
        b2=order.b2,
        curves=order.curves,
        parametrization=order.parametrization,
        sigma=order.sigma,
    )


def start_ecm(order: EcmOrder, ecm: Path) -> subprocess.Popen[str]:
    """Start GMP-ECM, which then waits for its number. Raises EcmFailedError if the program cannot be started."""
    try:
        return subprocess.Popen(
            ecm_command(order, ecm),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # In a session of its own it does not get the terminal's Ctrl-C: the agent decides when its curve ends.
            start_new_session=True,
        )
    except OSError as error:
        raise EcmFailedError(f"{ecm} could not be started: {error.strerror}") from error


def process_start_time(pid: int) -> float:
    """Return when a process was started (seconds since 1970), or 0 if it has ended."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


def kill_orphan(pid: int, start_time: float) -> None:
    """Kill the GMP-ECM of a killed agent, which would run on until it writes its next line, maybe for hours.

    A process with the same id and another start time is not touched.
    """
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.create_time() == start_time:
            process.kill()


def recover_runs(root: Path) -> int:
    """Turn the journals of killed agents into pending entries; return how many had completed curves or factors."""
    recovered = 0
    for path, head, records in spool.lock_abandoned_runs(root):
        order = EcmOrder(**head["order"])
        if head.get("process"):
            kill_orphan(*head["process"])
        entry = store_result(order, path.stem, root, records)
        if entry:
            if order.work_id:
                local_lease.record_recovered_run(root, order.work_id, entry)
            entry.release()
            recovered += 1
        spool.remove_durably(path)
    return recovered


def build_payload(order: EcmOrder, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the body of POST /api/v1/submit_result for a journal: its completed curves and all their factors.

    The sigma is that of the first curve; each factor has its own.
    """
    output = EcmOutput()
    seconds = 0.0
    for record in records:
        if output.feed(record["line"]) or output.factors:
            seconds = record["seconds"]
    raw = "".join(record["line"] + "\n" for record in records).encode("utf-8", "replace")
    return {
        "client_id": order.client_id,
        "composite": order.composite,
        "project": None,
        "method": "ecm",
        "program": "gmp-ecm",
        "program_version": output.version,
        "parameters": {
            "b1": order.b1,
            "b2": reported_b2(order, output),
            "curves": order.curves,
            "parametrization": order.parametrization if output.parametrization is None else output.parametrization,
            "sigma": output.sigma or order.sigma,
        },
        "results": {
            "curves_completed": output.curves_completed,
            "execution_time": seconds,
            "factor_found": None,
            "factors_found": [{"factor": factor.value, "sigma": factor.sigma} for factor in output.factors],
        },
        "work_id": order.work_id,
        "raw_output": raw[-MAX_RAW_OUTPUT:].decode("utf-8", "ignore"),
    }


def reported_b2(order: EcmOrder, output: EcmOutput) -> int | None:
    """Return the B2 for the server: None for GMP-ECM 7's default, 0 without stage 2, else the effective value.

    A default is not reported by its value, because that would describe another stage 2: GMP-ECM splits an explicit
    B2 = 1045563762 for B1 = 10^6 into 2 blocks of 8192 points, and the default of the same value into 6 of 4096. Only
    versions before 7, which have other defaults, are reported by the value that they printed.
    """
    if order.b2 is None and output.version and int(output.version.split(".")[0]) >= 7:
        return None
    return order.b2 if output.b2 is None else output.b2


def store_result(order: EcmOrder, key: str, root: Path, records: list[dict[str, Any]]) -> spool.SpoolEntry | None:
    """Write the payload of a journal to `pending/`, locked; return None if it has neither curves nor factors."""
    payload = build_payload(order, records)
    if not payload["results"]["curves_completed"] and not payload["results"]["factors_found"]:
        return None
    return spool.add_entry(root, key, order.server, payload)
