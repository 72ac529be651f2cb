"""One run of GMP-ECM, from the order to a payload in the spool.

    1  the order goes to a journal in the spool
    2  GMP-ECM's lines go to the journal as they come, then to the parser
    3  the payload, which is a function of the journal alone, goes to `pending/`
    4  the journal goes away

A process killed anywhere in 1-4 leaves a journal, which recover() finishes to the very same payload under the same key,
or a pending entry; both are sent at the next start.
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

from agent import gmp_ecm, held, spool
from agent.gmp_ecm import EcmFailed, Output
from models.wire.results import SubmitResult

MAX_RAW_OUTPUT = 64 * 1024  # bytes of GMP-ECM's output that go with a result: the tail, as the server keeps it


@dataclass(frozen=True)
class Order:
    """What to run, for whom, and where the result goes. `b2` None: GMP-ECM's default; 0: stage 1 only.

    `work_id` names the lease that the curves belong to.
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


def check(order: Order) -> None:
    """Raise ValueError for an order whose result the server would refuse, or GMP-ECM would misread.

    Hours of curves should not end at a typing error.
    """
    if not order.composite.isascii() or not order.composite.isprintable() or set(order.composite) & set(" \\"):
        raise ValueError(f"number {order.composite[:60]!r}: write it in one word, such as 2^1277-1 or (10^71-1)/9")
    SubmitResult.model_validate(result_payload(order, []))
    gmp_ecm.command(
        Path("ecm"),
        b1=order.b1,
        b2=order.b2,
        curves=order.curves,
        parametrization=order.parametrization,
        sigma=order.sigma,
    )


class Stop:
    """The wish to end a run early; request() may be called from a signal handler."""

    def __init__(self) -> None:
        self.requested = False
        self._process: subprocess.Popen[str] | None = None

    def request(self) -> None:
        self.requested = True
        if self._process:
            self._process.kill()

    def watch(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        if self.requested:
            process.kill()


def run_curves(
    order: Order,
    ecm: Path,
    root: Path,
    *,
    stop: Stop | None = None,
    on_line: Callable[[Output, bool], None] = lambda output, curve_done: None,
    on_spooled: Callable[[spool.Entry], None] = lambda entry: None,
) -> tuple[Output, spool.Entry | None]:
    """Run GMP-ECM until its curves are done, a factor is found, or `stop` is requested, and spool the result.

    `on_line` is told after every line what the output says so far and whether that line completed a curve. `on_spooled`
    is told of the entry while the journal still exists: a death in there is made up for by recover(). Returns what
    the whole output says, and the entry in the spool, locked for the caller; None if not one curve was completed.
    Raises EcmFailed if GMP-ECM fails; what was completed before is pending in the spool then.
    """
    stop = stop or Stop()
    spool.prepare(root)
    key = str(uuid4())
    output = Output()
    process = start(order, ecm)
    try:
        assert process.stdin and process.stdout
        stop.watch(process)
        journal = spool.Journal(root, key, asdict(order), (process.pid, born(process.pid)))
        started = time.monotonic()
        try:
            process.stdin.write(order.composite + "\n")
            process.stdin.close()
        except BrokenPipeError:
            pass  # it ended before it read the number, and its output says why
        for text in process.stdout:
            line = text.rstrip("\r\n").replace("\0", "")
            journal.append(time.monotonic() - started, line)
            on_line(output, output.feed(line))
        status = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        if process.stdout:
            process.stdout.close()
    entry = finish(order, key, root, journal.records)
    if entry:
        on_spooled(entry)
    journal.remove()
    if not stop.requested and (status < 0 or status & gmp_ecm.ERROR_BIT or output.version is None):
        if entry:
            entry.release()
        said = " / ".join(record["line"] for record in journal.records[-3:]) or "nothing"
        raise EcmFailed(
            f"{ecm} ended with status {status} after {output.curves_completed} completed curves; it said: {said[-300:]}"
        )
    return output, entry


def start(order: Order, ecm: Path) -> subprocess.Popen[str]:
    """GMP-ECM, waiting for its number. Raises EcmFailed if the program cannot be started."""
    command = gmp_ecm.command(
        ecm,
        b1=order.b1,
        b2=order.b2,
        curves=order.curves,
        parametrization=order.parametrization,
        sigma=order.sigma,
    )
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # A session of its own: the terminal's Ctrl-C is for the agent, which decides what becomes of the curve.
            start_new_session=True,
        )
    except OSError as error:
        raise EcmFailed(f"{ecm} could not be started: {error.strerror}") from error


def born(pid: int) -> float:
    """When a process was started; 0 if it is gone already."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


def end_orphan(pid: int, start: float) -> None:
    """Kill a killed agent's GMP-ECM: it would notice its closed output only at the end of a step, hours later maybe."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.create_time() == start:
            process.kill()


def recover(root: Path) -> int:
    """Turn the journals of killed agents into pending entries. Returns how many had something to send."""
    recovered = 0
    for path, head, records in spool.abandoned(root):
        order = Order(**head["order"])
        if head.get("process"):
            end_orphan(*head["process"])
        entry = finish(order, path.stem, root, records)
        if entry:
            if order.work_id:
                held.note(root, order.work_id, entry)
            entry.release()
            recovered += 1
        spool.remove_durably(path)
    return recovered


def result_payload(order: Order, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The body of POST /api/v1/submit_result for a journal: the curves that were completed and all their factors.

    The sigma is that of the first curve; each factor comes with its own.
    """
    output = Output()
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


def reported_b2(order: Order, output: Output) -> int | None:
    """The B2 for the server: None for GMP-ECM 7's default, 0 where no stage 2 was run, else the effective one.

    A default is not reported by its value, because that would describe another stage 2: asked for outright, GMP-ECM's
    1045563762 for B1 = 10^6 is split into 2 blocks of 8192 points, where the default takes 6 of 4096. Only a GMP-ECM
    older than 7, whose defaults were others, is taken by the value that it printed.
    """
    if order.b2 is None and output.version and int(output.version.split(".")[0]) >= 7:
        return None
    return order.b2 if output.b2 is None else output.b2


def finish(order: Order, key: str, root: Path, records: list[dict[str, Any]]) -> spool.Entry | None:
    """The journal's payload in `pending/`, locked; None if there is nothing to tell."""
    payload = result_payload(order, records)
    if not payload["results"]["curves_completed"] and not payload["results"]["factors_found"]:
        return None
    return spool.put(root, key, order.server, payload)
