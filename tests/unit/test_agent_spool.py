"""The spool: whatever moment an agent dies at, its completed curves are sent once."""

import json
import os
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import spool
from agent.ecm_run import EcmOrder, build_payload, check_order, recover_runs, run_curves
from models.wire.results import SubmitResult

CAPTURED = Path(__file__).parent.parent / "data" / "gmp_ecm_output"
SERVER = "http://127.0.0.1:1"
ORDER = EcmOrder(server=SERVER, client_id="alice", composite="2^101-1", b1=200, curves=3)
PAYLOAD = {"composite": "2^101-1", "results": {"curves_completed": 3}}


def fake_ecm(path, printed, then=""):
    """A program that prints a captured output, as GMP-ECM does: line by line."""
    path.write_text(f"#!/bin/sh\nread number\ncat {shlex.quote(str(printed))}\n{then}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def root(tmp_path):
    spool.prepare_spool(tmp_path / "spool")
    return tmp_path / "spool"


def keys(root):
    found = []
    for entry in spool.lock_pending_entries(root, SERVER):
        found.append(entry.key)
        entry.release()
    return found


def test_an_entry_is_there_until_it_is_settled(root):
    entry = spool.add_entry(root, "k1", SERVER, PAYLOAD)
    assert keys(root) == []  # its writer holds it
    entry.release()
    (again,) = spool.lock_pending_entries(root, SERVER)
    assert (again.key, again.server, again.payload) == ("k1", SERVER, PAYLOAD)
    spool.remove_entry(again)
    assert keys(root) == []


def test_two_agents_do_not_send_the_same_entry(root):
    spool.add_entry(root, "k1", SERVER, PAYLOAD).release()
    spool.add_entry(root, "k2", SERVER, PAYLOAD).release()
    first = next(spool.lock_pending_entries(root, SERVER))
    assert keys(root) == [{"k1": "k2", "k2": "k1"}[first.key]]
    spool.remove_entry(first)


def test_an_entry_stays_with_the_server_it_is_meant_for(root):
    spool.add_entry(root, "k1", "http://elsewhere", PAYLOAD).release()
    assert keys(root) == []
    assert spool.count_entries_of_other_servers(root, SERVER) == {"http://elsewhere": 1}
    assert spool.count_entries_of_other_servers(root, "http://elsewhere") == {}


def test_a_rejected_entry_is_kept_with_the_server_s_words(root):
    entry = spool.add_entry(root, "k1", SERVER, PAYLOAD)
    path = spool.reject_entry(entry, 400, {"reason": "factor_does_not_divide"})
    kept = json.loads(path.read_text())
    assert (kept["key"], kept["payload"], kept["status"]) == ("k1", PAYLOAD, 400)
    assert kept["answer"] == {"reason": "factor_does_not_divide"}
    assert keys(root) == []


def test_a_failed_write_leaves_nothing_under_the_name(root, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        spool.add_entry(root, "k1", SERVER, PAYLOAD)
    assert [path for path in root.rglob("*") if path.is_file()] == []


def test_old_temporary_files_are_swept(root):
    old, young = root / "pending" / ".a.json.1.new", root / "pending" / ".b.json.2.new"
    old.touch()
    young.touch()
    os.utime(old, (0, 0))
    spool.prepare_spool(root)
    assert not old.exists()
    assert young.exists()


def test_the_journal_of_a_living_agent_is_left_alone(root):
    journal = spool.Journal(root, "k1", asdict(ORDER))
    for line in (CAPTURED / "param3_curves.txt").read_text().splitlines():
        journal.append(1.0, line)
    assert recover_runs(root) == 0
    journal._file.close()  # what the kernel does for a killed one
    assert recover_runs(root) == 1
    assert keys(root) == ["k1"]
    assert recover_runs(root) == 0


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 2000))
def test_a_journal_torn_at_any_byte_gives_the_curves_before_it(tmp_path_factory, cut):
    root = tmp_path_factory.mktemp("torn")
    spool.prepare_spool(root)
    journal = spool.Journal(root, "k1", asdict(ORDER))
    header = journal.path.stat().st_size
    for second, line in enumerate((CAPTURED / "param3_curves.txt").read_text().splitlines()):
        journal.append(second, line)
    journal._file.close()
    content = journal.path.read_bytes()
    kept = content[: max(header, len(content) - cut)]
    journal.path.write_bytes(kept)
    # A curve is complete with the whole record of its step 2.
    curves = sum(b"Step 2 took" in line for line in kept.split(b"\n")[:-1])
    assert recover_runs(root) == (curves > 0)
    for entry in spool.lock_pending_entries(root, SERVER):
        assert entry.payload["results"]["curves_completed"] == curves
        entry.release()
    assert not journal.path.exists()


def die_at(step, root, ecm, log):
    """In a child: run curves, send (append to `log`) and settle; die without a trace at the `step`-th write."""
    count = 0

    def mortal(function):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == step:
                os._exit(9)
            return function(*args, **kwargs)

        return call

    child = os.fork()
    if child == 0:
        try:
            os.fsync = mortal(os.fsync)
            Path.rename = mortal(Path.rename)
            Path.unlink = mortal(Path.unlink)
            spool.Journal.append = mortal(spool.Journal.append)
            _, entry = run_curves(ORDER, ecm, root)
            send(entry, log)
            spool.remove_entry(entry)
        finally:
            os._exit(0 if step > count else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def send(entry, log):
    with log.open("a") as file:
        file.write(json.dumps([entry.key, entry.payload]) + "\n")


def test_death_at_any_step_loses_nothing_and_counts_nothing_twice(tmp_path):
    ecm = fake_ecm(tmp_path / "ecm", CAPTURED / "param3_curves.txt")
    counted = []
    for step in range(1, 60):
        root, log = tmp_path / f"spool{step}", tmp_path / f"log{step}"
        log.touch()
        status = die_at(step, root, ecm, log)
        assert status in (0, 9)
        # The next start: what was left is sent, twice over for good measure.
        spool.prepare_spool(root)
        recover_runs(root)
        for entry in list(spool.lock_pending_entries(root, SERVER)):
            send(entry, log)
            send(entry, log)
            spool.remove_entry(entry)
        sent = [json.loads(line) for line in log.read_text().splitlines()]
        assert len({key for key, _ in sent}) <= 1
        assert all(payload == sent[0][1] for _, payload in sent), "one key must always mean one payload"
        counted.append(sent[0][1]["results"]["curves_completed"] if sent else 0)
        assert not list((root / "running").glob("*.jsonl"))
        if status == 0:
            break
    assert status == 0
    # The later it dies the more curves count; once GMP-ECM has ended it is always all of them.
    assert counted == sorted(counted)
    assert set(counted) == {0, 1, 2, 3}


def test_the_payload_is_what_the_server_takes():
    lines = (CAPTURED / "several_factors.txt").read_text().splitlines()
    payload = build_payload(ORDER, [{"seconds": 0.5 * i, "line": line} for i, line in enumerate(lines)])
    result = SubmitResult.model_validate(json.loads(json.dumps(payload)))
    assert result.results.curves_completed == 4
    assert [factor.factor for factor in result.results.factors_found] == ["1000003", "193707721"]
    assert [factor.sigma for factor in result.results.factors_found] == ["1:328172576", "1:2113573387"]
    assert result.parameters.b2 is None  # the default, not its value
    assert result.parameters.parametrization == 1
    assert result.results.execution_time == 0.5 * (len(lines) - 1)
    assert payload["raw_output"].splitlines() == lines


@pytest.mark.parametrize(
    ("asked", "name", "version", "reported"),
    [
        (None, "param1", "7.0.7", None),
        (None, "param1", "6.4.4", 147396),
        (147396, "param1", "7.0.7", 147396),
        (0, "stage1_only", "7.0.7", 0),
        (1, "b2_below_b1", "7.0.7", 0),
        (5000, "b2_interval", "7.0.7", 5000),
    ],
)
def test_b2_is_reported_as_it_was_asked_for(asked, name, version, reported):
    lines = (CAPTURED / f"{name}.txt").read_text().replace("7.0.7", version).splitlines()
    order = EcmOrder(**(asdict(ORDER) | {"b2": asked}))
    payload = build_payload(order, [{"seconds": 0.0, "line": line} for line in lines])
    assert payload["parameters"]["b2"] == reported


def test_only_the_tail_of_a_long_output_goes_along():
    records = [{"seconds": 0.0, "line": f"line {i}"} for i in range(20_000)]
    raw = build_payload(ORDER, records)["raw_output"]
    assert len(raw) == 64 * 1024
    assert raw.endswith("line 19999\n")


@pytest.mark.parametrize("composite", ["", "2^67 -1", "2^67-1\n15", "2^67-1\\", "\uff12^67-1", "7\0"])
def test_a_number_that_is_not_one_word_is_refused_before_anything_runs(composite):
    with pytest.raises(ValueError, match=r"write it without spaces|composite"):
        check_order(EcmOrder(server=SERVER, client_id="alice", composite=composite, b1=200, curves=3))


@pytest.mark.parametrize("change", [{"b1": 1}, {"b1": 10**30}, {"b2": -5}, {"client_id": "a\nb"}, {"sigma": "7:7"}])
def test_an_order_whose_result_would_be_refused_is_refused_at_once(change):
    check_order(ORDER)
    with pytest.raises(ValueError, match=next(iter(change))):
        check_order(EcmOrder(**(asdict(ORDER) | {"curves": 1} | change)))
