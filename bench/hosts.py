"""A coordinator on many hosts: results a second by number of workers, what a result costs where, and vanished hosts.

`python -m bench.hosts` makes a host (bench/namespaces.py) for the database, for the broker, for beat, for each web
process group, for each worker, and for the clients. It needs root and network namespaces; where they are not allowed it
says so, and ends with 0. It measures:

- accepting: results stored a second while no worker runs, and the processor time that this takes;
- applying: how fast 1, 2 and 4 workers then apply them. All hosts share the cores of this machine, so here each worker
  gets a tenth of a core, and the database little more, if cgroups allow it: then the rate grows with the workers until
  the database is the limit, as it does with whole machines;
- leases: the processor time of a lease, a result on it that is waited for, and its completion, with one worker;
- disk: bytes for each result, of tables with their indexes after VACUUM, and of the write-ahead log;
- faults: the cable of a host is pulled while clients send results, at a moderate rate: a worker's in the middle of a
  transaction, a web process's, the broker's and the database's. What is counted: the seconds until as many results a
  second are applied as before, the longest that a result waited, and acknowledged results that were not applied once.
"""

import json
import logging
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import gmpy2
import redis
import requests
import structlog
from gmpy2 import mpz
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, Engine, text

from bench import load
from bench.namespaces import Host, Network, NotAllowedError, network
from bench.paced_clients import NO_ANSWER, PacedClients
from bench.pipeline import send, wait_applied
from config.local.postgres import postgres_answers, postgres_url, prepare_postgres
from config.local.procfile import find_procfile, read_procfile
from config.local.valkey import prepare_valkey, valkey_url
from coordinator.base.audit import Actor
from coordinator.housekeeping.schema_upgrade import bring_up_to_date
from coordinator.loading.list_formats import InputRow
from coordinator.loading.load import load_numbers
from coordinator.reading import invariants
from ingest.commands.private_stack import private_environment
from models.engine import make_engine

WEB_HOSTS, WORKER_HOSTS = 2, (1, 2, 4)
KINDS = ("database", "web", "worker", "broker")
WORKER_CORES, DATABASE_CORES = 0.1, 0.12
RESULTS = 1200  # with each number of workers
CONNECTIONS = 8
CYCLES = 160
NUMBERS = 2000
FAULT_NUMBERS = 40
START_SECONDS = 90.0
SETTLE_SECONDS = 60.0

# While a cable is pulled: clients, their results a second, and seconds before and after.
WAITING, NOT_WAITING, EACH_A_SECOND = 3, 5, 5.0
NORMAL_SECONDS = 4.0
# A rate is the former one if a second has this share of it.
FORMER = 0.8
# How many seconds the cable of a host is pulled; the worker's and the web's stay pulled until the fault is over.
AWAY = {"worker": 15.0, "web": 8.0, "broker": 8.0, "database": 12.0}


@dataclass
class Installation:
    """A coordinator on the hosts of a network, and an engine that reaches its database whatever happens to cables."""

    network: Network
    home: Path
    engine: Engine
    database: Host
    broker: Host
    beat: Host
    clients: Host
    settings: dict[str, str]
    webs: list[Host] = field(default_factory=list)
    workers: list[Host] = field(default_factory=list)

    @property
    def addresses(self) -> list[str]:
        """The addresses of the web processes."""
        return [f"http://{web.address}:8000" for web in self.webs]

    def start(self, host: Host, program: str, **settings: str) -> None:
        """Start a program of the Procfile on a host."""
        home = self.home.parent / host.name
        home.mkdir(exist_ok=True)
        environment = private_environment(**self.settings, ECM_HOME=str(home), **settings)
        command = read_procfile(find_procfile())[program]
        host.spawn(["sh", "-c", f"exec {command}"], environment, self.home.parent / f"{host.name}.log")

    def add_web(self) -> None:
        """Add a host with a web process group, and wait until it is ready."""
        host = self.network.add_host(f"web{len(self.webs) + 1}")
        self.start(host, "web", HOST=host.address, PORT="8000")
        self.webs.append(host)
        wait_until(lambda: self.clients.call(_is_ready, self.addresses[-1]), START_SECONDS, f"{host.name} is ready")

    def add_workers(self, count: int) -> None:
        """Add hosts with a worker each until there are so many, and wait for their heartbeats."""
        while len(self.workers) < count:
            host = self.network.add_host(f"worker{len(self.workers) + 1}")
            host.limit(None)
            self.start(host, "worker")
            self.workers.append(host)
        url = self.settings["REDIS_URL"]
        wait_until(lambda: self.clients.call(_heartbeats, url) >= count, START_SECONDS, "the workers live")

    def processor_ms(self) -> dict[str, float]:
        """Return the processor time so far by kind of host."""
        hosts = ([self.database], self.webs, self.workers, [self.broker])
        return {kind: sum(host.processor_ms() for host in some) for kind, some in zip(KINDS, hosts, strict=True)}


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until a condition holds; raises RuntimeError after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited for {seconds:.0f} s in vain: {what}")
        time.sleep(0.1)


def _is_ready(address: str) -> bool:
    try:
        return requests.get(f"{address}/ready", timeout=5).ok
    except requests.RequestException:
        return False


def _heartbeats(url: str) -> int:
    with redis.Redis.from_url(url, socket_timeout=5) as client:
        return sum(1 for _ in client.scan_iter("ecm:heartbeat:worker:*"))


@contextmanager
def installation() -> Iterator[Installation]:
    """Run a coordinator on hosts of its own, with one worker; stop and remove it at the end.

    After a failure its logs stay. Raises NotAllowedError where network namespaces are not allowed.
    """
    with network() as made:
        directory = Path(tempfile.mkdtemp(prefix="ecm-hosts-"))
        directory.chmod(0o711)  # the servers run under an account of their own
        try:
            with _servers(made, directory / "home") as running:
                running.start(running.beat, "beat")
                for _ in range(WEB_HOSTS):
                    running.add_web()
                running.add_workers(1)
                yield running
        except BaseException:
            print(f"the logs are in {directory}", file=sys.stderr)
            raise
        finally:
            made.remove()
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _servers(made: Network, home: Path) -> Iterator[Installation]:
    database, broker, beat, clients = (made.add_host(name) for name in ("database", "broker", "beat", "clients"))
    database.limit(None)
    home.mkdir(mode=0o711)
    by_network = start_database(database, home)
    bring_up_to_date(postgres_url(home))

    launch = prepare_valkey(home, 6379)
    assert launch.stdin is not None  # noqa: S101 - for mypy
    configuration = launch.stdin.read_text().replace("bind 127.0.0.1", f"bind {broker.address}")
    launch.stdin.write_text(configuration)
    environment, log = private_environment(), home.parent / "broker.log"
    broker.spawn(launch.argv, environment, log, directory=launch.directory, account=launch.account, stdin=launch.stdin)
    settings = {
        "DATABASE_URL": by_network,
        "REDIS_URL": valkey_url(home).replace("127.0.0.1", broker.address),
        "LOG_LEVEL": "WARNING",
    }
    engine = make_engine(postgres_url(home), pool_size=2)
    try:
        yield Installation(made, home, engine, database, broker, beat, clients, settings)
    finally:
        engine.dispose()


def start_database(host: Host, home: Path) -> str:
    """Start a PostgreSQL on a host, with its cluster in the new directory `home`; returns its URL for other hosts.

    `postgres_url(home)` is its URL for this process. The servers' account must be able to enter the directory.
    """
    launch = prepare_postgres(home)
    with (launch.directory / "pg_hba.conf").open("a") as file:
        file.write(f"host all ecm {host.address}/24 scram-sha-256\n")
    command = [*launch.argv, f"--listen_addresses={host.address}"]
    log = home.parent / f"{host.name}.log"
    host.spawn(command, private_environment(), log, directory=launch.directory, account=launch.account)
    wait_until(lambda: postgres_answers(postgres_url(home)), START_SECONDS, "PostgreSQL answers")
    return postgres_url(home).replace("@/ecm", f"@{host.address}/ecm").partition("?")[0]


# Rates and costs ------------------------------------------------------------------------------------------------------


def load_list(engine: Engine) -> list[str]:
    """Load a list of numbers of 150 digits, as an operator does; returns them."""
    large, small = gmpy2.next_prime(mpz(10) ** 139), mpz(10) ** 10
    numbers = []
    for _ in range(NUMBERS):
        small = gmpy2.next_prime(small + 1000)
        numbers.append((large * small).digits())
    rows = [InputRow(line, number) for line, number in enumerate(numbers, 1)]
    load_numbers(engine, rows, max_digits=1000, actor=Actor("bench"), source="bench", processes=0)
    return numbers


def measure_workers(running: Installation, numbers: list[str], results: int) -> dict[str, Any]:
    """Return, by number of workers, results a second and processor ms of a result by host, accepting and applying."""
    figures: dict[str, Any] = {}
    for count in WORKER_HOSTS:
        running.add_workers(count)
        with ExitStack() as stack:
            for worker in running.workers:
                stack.enter_context(worker.paused())
            send_all = partial(_send_to_all, running.addresses, numbers, results)
            accepting = measure_step(running, results, partial(running.clients.call, send_all))
            hosts = [*((worker, WORKER_CORES) for worker in running.workers), (running.database, DATABASE_CORES)]
            limited = [host.limit(cores) for host, cores in hosts]
        applying = measure_step(running, results, partial(wait_applied, running.engine))
        for host, _ in hosts:
            host.limit(None)
        figures[str(count)] = {"limited": all(limited), "accepting": accepting, "applying": applying}
    return figures


def measure_step(running: Installation, operations: int, do: Callable[[], object]) -> dict[str, Any]:
    """Return how many operations a second `do()` made, and their processor ms by host."""
    before, began = running.processor_ms(), time.perf_counter()
    do()
    seconds, after = time.perf_counter() - began, running.processor_ms()
    costs = {kind: round((after[kind] - before[kind]) / operations, 2) for kind in after}
    return {"per_second": round(operations / seconds, 1), "processor_ms": costs}


def _send_to_all(addresses: list[str], numbers: list[str], results: int) -> None:
    """Send results without waiting for outcomes, to all addresses at the same time."""
    each, connections = results // len(addresses), CONNECTIONS // len(addresses)
    with ThreadPoolExecutor(len(addresses)) as pool:
        sent = [
            pool.submit(send, address, numbers[place :: len(addresses)], each, connections, wait=False)
            for place, address in enumerate(addresses)
        ]
    for one in sent:
        one.result()


def _run_cycles(addresses: list[str]) -> None:
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        clients = [pool.submit(_run_cycles_of, addresses[n % len(addresses)], f"lease-{n}") for n in range(CONNECTIONS)]
        for client in clients:
            client.result()


def _run_cycles_of(address: str, name: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    connection = load.KeepAliveConnection(host, int(port))
    for _ in range(CYCLES // CONNECTIONS):
        path = f"/api/v1/ecm-work?client_id={name}&shared=1"
        lease = _answer(connection, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        body = load.result(lease["composite"], name, 10, work_id=lease["work_id"])
        body["parameters"] |= {key: lease[key] for key in ("b1", "parametrization")}
        _answer(connection, load.post("/api/v1/submit_result", body, "localhost"))
        path = f"/api/v1/work/{lease['work_id']}/complete?client_id={name}"
        _answer(connection, load.post(path, {}, "localhost"))
    connection.close()


def _answer(connection: load.KeepAliveConnection, data: bytes) -> dict[str, Any]:
    status, body = connection.request(data)
    if status != 200:
        raise RuntimeError(f"a request of a cycle got {status}: {body[:300]!r}")
    answer: dict[str, Any] = json.loads(body)
    return answer


_SIZES = text("SELECT relname, pg_total_relation_size(oid) AS bytes FROM pg_class WHERE relkind = 'r'")
_WRITTEN = text(
    "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float AS wal, xact_commit AS commits,"
    " (SELECT count(*) FROM submissions) AS results FROM pg_stat_database WHERE datname = current_database()"
)


@dataclass(frozen=True)
class Disk:
    """What a database has stored: bytes by table, bytes of the write-ahead log, commits, and results."""

    tables: dict[str, int]
    wal: float
    commits: int
    results: int


def disk(engine: Engine) -> Disk:
    """Return what is stored, after VACUUM has made room of dead rows."""
    with engine.connect() as connection:
        written = connection.execute(_WRITTEN).one()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE submissions, ecm_attempts, composites, targets, value_effort"))
        tables = {row.relname: row.bytes for row in connection.execute(_SIZES)}
    return Disk(tables, written.wal, written.commits, written.results)


def disk_of_a_result(before: Disk, after: Disk) -> dict[str, Any]:
    """Return bytes for each result by table, in all and of the log, and commits."""
    results = after.results - before.results
    grown = {name: round((size - before.tables.get(name, 0)) / results) for name, size in after.tables.items()}
    return {
        "results": results,
        "tables": {name: size for name, size in grown.items() if size >= 5},
        "table_bytes": sum(grown.values()),
        "wal_bytes": round((after.wal - before.wal) / results),
        "commits": round((after.commits - before.commits) / results, 2),
    }


# Faults ---------------------------------------------------------------------------------------------------------------


def measure_fault(running: Installation, kind: str, numbers: list[str]) -> dict[str, Any]:
    """Pull the cable of a host of this kind while clients send results, and return what that cost."""
    victim = {
        "worker": running.workers[0],
        "web": running.webs[0],
        "broker": running.broker,
        "database": running.database,
    }[kind]
    comes_back = kind in ("broker", "database")
    clients = PacedClients(running.addresses, numbers, EACH_A_SECOND, WAITING, NOT_WAITING)
    held = victim.call(_begin_work_on, running.settings["DATABASE_URL"], numbers[0]) if kind == "worker" else None
    running.clients.call(clients.start)
    time.sleep(NORMAL_SECONDS)
    pulled, pulled_at = time.time(), time.monotonic()
    victim.pull_cable()
    time.sleep(AWAY[kind])
    fault_over = pulled
    if comes_back:
        victim.plug_in()
        fault_over = time.time()
        time.sleep(NORMAL_SECONDS)
    stopped = time.time()
    clients.stop()
    unsettled = _wait_settled(running.engine, clients.acknowledged())
    victim.plug_in()
    wait_until(lambda: running.clients.call(_is_ready, running.addresses[0]), START_SECONDS, "web1 is ready again")
    if held is not None:
        held.invalidate()
    return {
        "away_seconds": AWAY[kind] if comes_back else None,
        # The clients of a web process that stays away learn of it after ANSWER_SECONDS: this is about all others.
        **_progress(running.engine, clients.acknowledged(but_not=victim.address), pulled, fault_over, stopped),
        **_answers(clients, pulled_at, victim),
        "unsettled": unsettled,
        **_counted_once(running.engine, clients),
    }


def _begin_work_on(url: str, number: str) -> Connection:
    """Lock a number, as a worker does in the middle of a unit of work; returns the connection that holds the lock."""
    connection = make_engine(url).connect()
    locking = text("SELECT id FROM composites WHERE number = :number FOR NO KEY UPDATE")
    connection.execute(locking, {"number": number}).one()
    return connection


def _wait_settled(engine: Engine, ids: list[int]) -> int:
    """Wait until these submissions are settled, for SETTLE_SECONDS; returns how many are not."""
    deadline = time.monotonic() + SETTLE_SECONDS
    waiting = text("SELECT count(*) FROM submissions WHERE id = ANY(:ids) AND state = 'received'")
    while True:
        with engine.connect() as connection:
            left: int = connection.execute(waiting, {"ids": ids}).scalar_one()
        if left == 0 or time.monotonic() > deadline:
            return left
        time.sleep(0.2)


def _progress(engine: Engine, ids: list[int], pulled: float, fault_over: float, stopped: float) -> dict[str, Any]:
    """Return the rate before the fault, and the seconds that it cost these submissions, as the database stored them.

    The times (seconds since 1970): when the cable was pulled, when the fault was over, and when the clients stopped.
    """
    times = text(
        "SELECT extract(epoch FROM created_at)::float AS stored, extract(epoch FROM settled_at)::float AS settled"
        " FROM submissions WHERE id = ANY(:ids) AND settled_at IS NOT NULL ORDER BY settled_at"
    )
    with engine.connect() as connection:
        rows = connection.execute(times, {"ids": ids}).all()
    settled: list[float] = [row.settled for row in rows]
    before = sum(pulled - NORMAL_SECONDS + 1 <= one < pulled for one in settled) / (NORMAL_SECONDS - 1)

    def has_former_rate(moment: float) -> bool:
        count = sum(1 for one in settled if moment <= one < moment + 1)
        return count >= FORMER * before

    back = next((one for one in settled if one >= fault_over and has_former_rate(one)), None)
    after = [one for one in settled if pulled <= one < stopped]
    pauses = [later - earlier for earlier, later in zip([pulled, *after], after, strict=False)]
    return {
        "applied_per_second_before": round(before, 1),
        "former_rate_after_seconds": None if back is None else round(back - fault_over, 1),
        "longest_pause_seconds": round(max(pauses, default=0.0), 1),
        "longest_wait_seconds": round(max((row.settled - row.stored for row in rows), default=0.0), 1),
    }


def _answers(clients: PacedClients, pulled_at: float, victim: Host) -> dict[str, Any]:
    """Return the answers since the cable was pulled: how many by status, and the longest of the hosts that stayed."""
    since = [one for one in clients.requests if one.ended >= pulled_at]
    statuses = Counter("none" if one.status == NO_ANSWER else str(one.status) for one in since)
    others = [one.ended - one.began for one in since if victim.address not in one.address]
    return {"answers": dict(sorted(statuses.items())), "longest_answer_seconds": round(max(others, default=0.0), 1)}


def _counted_once(engine: Engine, clients: PacedClients) -> dict[str, int]:
    """Return how many acknowledged results there were, and how many of them do not have exactly one attempt."""
    ids = sorted(set(clients.acknowledged()))
    attempts = text(
        "SELECT count(*) FROM unnest(CAST(:ids AS bigint[])) wanted (id) WHERE 1 <>"
        " (SELECT count(*) FROM submissions s JOIN ecm_attempts a ON a.submission_id = s.id"
        " WHERE s.id = wanted.id AND s.state = 'applied' AND s.attempt_id = a.id)"
    )
    with engine.connect() as connection:
        return {"acknowledged": len(ids), "not_once": connection.execute(attempts, {"ids": ids}).scalar_one()}


# The report -----------------------------------------------------------------------------------------------------------


def measure(results: int = RESULTS) -> dict[str, Any]:
    """Return all figures; raises NotAllowedError where network namespaces are not allowed."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with installation() as running:
        numbers = load_list(running.engine)
        # The first curves of a number make rows that its next ones change.
        running.clients.call(_send_to_all, running.addresses, numbers, NUMBERS)
        wait_applied(running.engine)
        # With one worker: several wake up for fewer results each, which costs more.
        cycles = partial(running.clients.call, _run_cycles, running.addresses)
        figures: dict[str, Any] = {"leases": measure_step(running, CYCLES, cycles)}
        before = disk(running.engine)
        figures["workers"] = measure_workers(running, numbers, results)
        figures["disk"] = disk_of_a_result(before, disk(running.engine))
        figures["faults"] = {kind: measure_fault(running, kind, numbers[:FAULT_NUMBERS]) for kind in AWAY}
        wait_applied(running.engine)
        violations = invariants.violations(running.engine, max_digits=1000)
    return figures | {"broken_invariants": [list(map(str, violation)) for violation in violations]}


def report(figures: dict[str, Any]) -> Iterator[Table | str]:
    """Yield the figures as tables and sentences for a terminal."""
    limited = all(row["limited"] for row in figures["workers"].values())
    cores = f"while applying, each worker has {WORKER_CORES} cores, the database {DATABASE_CORES}"
    steps = [("lease, result, completion", figures["leases"])]
    for count, row in figures["workers"].items():
        steps += [("accepting", row["accepting"]), (f"applying, {count} workers", row["applying"])]
    yield _table(
        f"Rates, and processor ms for each by host ({cores if limited else 'no limits'})",
        ("", "a second", *KINDS),
        [(name, one["per_second"], *(one["processor_ms"][kind] for kind in KINDS)) for name, one in steps],
    )
    stored = figures["disk"]
    tables = ", ".join(f"{name} {size}" for name, size in stored["tables"].items())
    yield (
        f"Bytes for each of {stored['results']} results: {stored['table_bytes']} ({tables}); "
        f"write-ahead log {stored['wal_bytes']}; commits {stored['commits']}"
    )
    for kind, row in figures["faults"].items():
        away = "and stays away" if row["away_seconds"] is None else f"for {row['away_seconds']:.0f} s"
        answers = ", ".join(f"{count} times {status}" for status, count in row["answers"].items())
        yield (
            f"The cable of the {kind} is pulled {away}: {row['applied_per_second_before']} results a second before;"
            f" the former rate {row['former_rate_after_seconds']} s after the fault; longest pause"
            f" {row['longest_pause_seconds']} s; longest wait of a result {row['longest_wait_seconds']} s;"
            f" answers: {answers}, within {row['longest_answer_seconds']} s by the hosts that stay;"
            f" of {row['acknowledged']} acknowledged results {row['unsettled']} are not settled,"
            f" {row['not_once']} have not exactly one attempt"
        )
    yield f"Broken invariants: {figures['broken_invariants'] or 'none'}"


def _table(title: str, headings: Sequence[str], rows: list[tuple[Any, ...]]) -> Table:
    table = Table(title=title)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(str, row))
    return table


@click.command()
@click.option("--results", default=RESULTS, show_default=True, help="Results that are sent to each number of workers.")
@click.option("--json", "target", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures here.")
def main(results: int, target: Path | None) -> None:
    """Measure a coordinator on many hosts: rates and costs by number of workers, and what a vanished host costs."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # whatever ends this process, its hosts are removed
    try:
        figures = measure(results)
    except NotAllowedError as error:
        click.echo(f"Hosts need network namespaces, which are not allowed here: {error}")
        return
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for part in report(figures):
        console.print(part)
    if target:
        target.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
