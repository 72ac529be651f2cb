"""Clearing away what a killed program left behind, and nothing else."""

import os
import signal
import subprocess
import sys

import psutil

from config.local.processes import TAG, find_strays, kill_strays, program_tag, terminate

# A program that has a child, in a session of its own, and says its number.
FORKS = "import os,time\np=os.fork()\nif not p: os.setsid()\nelse: print(p, flush=True)\ntime.sleep(60)"


def start(home, name, script=FORKS):
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, TAG: program_tag(home, name)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_orphans_of_a_killed_program_are_found_and_killed_and_others_left_alone(tmp_path):
    program, other = start(tmp_path, "web"), start(tmp_path, "worker")
    try:
        orphan, child_of_other = int(program.stdout.readline()), int(other.stdout.readline())
        program.kill()
        program.wait()
        assert [process.pid for process in find_strays(tmp_path, "web")] == [orphan]
        assert find_strays(tmp_path / "elsewhere", "web") == []
        assert kill_strays(tmp_path, "web") == 1
        assert find_strays(tmp_path, "web") == []
        assert other.poll() is None
        assert {process.pid for process in find_strays(tmp_path, "worker")} == {other.pid, child_of_other}
    finally:
        other.kill()
        kill_strays(tmp_path, "worker")
        for process in (program, other):
            process.wait()
            process.stdout.close()


def test_a_stopped_process_is_ended_in_peace_when_it_listens_and_by_force_when_not(tmp_path):
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    # Not by print: stopped inside of its own, the program could not enter it once more from a handler.
    willing = "signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'peace'), os._exit(0)))"
    last_words = {}
    for handler in (deaf, willing):
        script = f"import os,signal,time\n{handler}\nprint('ready', flush=True)\ntime.sleep(60)"
        with start(tmp_path, "beat", script) as program:
            assert program.stdout.readline() == "ready\n"
            program.send_signal(signal.SIGSTOP)
            # A busy machine takes its time to let the willing one speak.
            terminate([psutil.Process(program.pid)], signal.SIGTERM, timeout=1 if handler == deaf else 20)
            last_words[handler] = program.stdout.read()
    assert last_words == {deaf: "", willing: "peace"}
