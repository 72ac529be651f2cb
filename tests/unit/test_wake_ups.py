"""Wake-ups: messages start runs, and every other reason for a run is noticed without a message."""

from types import SimpleNamespace

import pytest

from tasks import wake_ups
from tasks.wake_ups import IDLE_SECONDS, RUN_ALONE_SECONDS, SHORTEST_PAUSE, Run, WakeUps, WokenTask, ended


class Entry:
    """An entry of the event loop's timer."""

    def __init__(self, at, call):
        self.at, self.call, self.cancelled = at, call, False

    def cancel(self):
        self.cancelled = True


class Worker:
    """A worker's consumer with a clock that only the test moves, children that the test ends, and its events."""

    def __init__(self, monkeypatch, children=2):
        self.now, self.entries, self.started, self.events, self.stopping = 1000.0, [], [], [], False
        self.accepts = True
        self.pool = SimpleNamespace(num_processes=children, apply_async=self._apply)
        self.timer = SimpleNamespace(call_after=self._call_after)
        self.event_dispatcher = SimpleNamespace(send=lambda type, **fields: self.events.append((type, fields)))
        self.app = SimpleNamespace(conf=SimpleNamespace(task_soft_time_limit=55, task_time_limit=60))
        monkeypatch.setattr(wake_ups, "monotonic", lambda: self.now)

    def _apply(self, function, arguments, **options):
        if self.stopping:
            return None
        self.started.append(SimpleNamespace(run=arguments[0], lost=arguments[1], **options))
        return SimpleNamespace(accepted=lambda: self.accepts)

    def _call_after(self, seconds, call):
        self.entries.append(Entry(self.now + seconds, call))
        return self.entries[-1]

    def advance(self, seconds):
        """Let time pass, and call what is due."""
        until = self.now + seconds
        while due := [one for one in self.entries if one.at <= until and not one.cancelled]:
            first = min(due, key=lambda one: one.at)
            self.entries.remove(first)
            self.now = max(self.now, first.at)
            first.call()
        self.now = until

    def end(self, index=-1, **result):
        self.started[index].callback(Run(result.pop("events", []), **result))

    @property
    def next_wake(self):
        """The seconds until the next timer; None if there is none."""
        return min((one.at - self.now for one in self.entries if not one.cancelled), default=None)


class _Task:
    name = "tasks.results.apply_result"
    soft_time_limit = time_limit = None
    takes_all = True
    run_in_child = staticmethod(lambda run, lost: Run([]))

    def rows_of_message(self, arguments):
        return ((f"submission-{row[0]}", {"submission_id": row[0]}) for row in arguments.get("submissions", ()))


@pytest.fixture
def worker(monkeypatch):
    return Worker(monkeypatch)


@pytest.fixture
def woken(worker):
    """Wake-ups of a worker that has done its first run and has nothing to do."""
    woken = WakeUps(_Task())
    woken.connect(worker)
    worker.advance(0)
    worker.end()
    worker.started.clear()
    worker.events.clear()
    worker.advance(1)
    return woken


def message(*ids):
    return SimpleNamespace(payload=((), {"submissions": [(one, "alice", "15") for one in ids]}, {}))


def test_a_worker_runs_before_its_first_message_and_after_each_connection(worker):
    woken = WakeUps(_Task())
    for _ in range(2):
        worker.started.clear()
        woken.connect(worker)
        worker.advance(0)
        assert len(worker.started) == 1
        worker.end()
        worker.advance(1)


def test_a_message_starts_a_run_at_once_with_the_limits_of_its_task(woken, worker):
    woken.on_message(message(7), None)
    (started,) = worker.started
    assert (started.lost, started.soft_timeout, started.timeout) == ([], 55, 60)
    worker.end()
    assert worker.next_wake == pytest.approx(IDLE_SECONDS)


def test_messages_that_come_in_while_a_run_is_young_share_the_next_one(woken, worker):
    for one in range(5):
        woken.on_message(message(one), None)
    assert len(worker.started) == 1
    worker.advance(RUN_ALONE_SECONDS / 2)
    worker.end()
    assert len(worker.started) == 2
    worker.end()
    assert len(worker.started) == 2


def test_a_run_that_takes_long_holds_up_nobody(woken, worker):
    woken.on_message(message(1), None)
    woken.on_message(message(2), None)
    worker.advance(RUN_ALONE_SECONDS)
    assert len(worker.started) == 2
    # No child is free: the next run begins when one ends.
    worker.advance(10)
    woken.on_message(message(3), None)
    worker.advance(10)
    assert len(worker.started) == 2
    worker.end(0)
    assert len(worker.started) == 3
    assert len({started.run for started in worker.started}) == 3


def test_runs_that_take_one_row_each_fill_all_children(worker):
    task = _Task()
    task.takes_all = False
    woken = WakeUps(task)
    woken.connect(worker)
    worker.advance(0)
    worker.end()
    worker.started.clear()
    worker.advance(1)
    for one in range(5):
        woken.on_message(message(one), None)
    worker.advance(1)
    assert len(worker.started) == 2
    worker.end(0, next_due=0.0)
    assert len(worker.started) == 3
    worker.advance(1)
    # A run that finds nothing is followed by none.
    worker.end(1, next_due=None)
    worker.end(2, next_due=None)
    worker.advance(1)
    for _ in range(10):
        if len(woken._running) == 0:
            break
        worker.end(len(worker.started) - 1, next_due=None)
        worker.advance(1)
    assert woken._running == {}
    assert len(worker.started) <= 5


def test_more_runs_follow_while_more_is_due_and_a_timer_waits_for_what_is_due_later(woken, worker):
    woken.wake()
    worker.end(next_due=0.0)
    assert len(worker.started) == 2
    worker.end(next_due=3.5)
    assert len(worker.started) == 2
    assert worker.next_wake == pytest.approx(3.5)
    worker.advance(3.5)
    assert len(worker.started) == 3
    for due, pause in ((0.001, SHORTEST_PAUSE), (1e6, IDLE_SECONDS)):
        worker.end(next_due=due)
        assert worker.next_wake == pytest.approx(pause)
        worker.advance(pause)
    worker.end(next_due=None)
    assert worker.next_wake == pytest.approx(IDLE_SECONDS)


def test_an_earlier_timer_replaces_a_later_one(woken, worker):
    woken._wake_after(4.0)
    woken._wake_after(2.0)
    assert worker.next_wake == pytest.approx(2.0)
    woken._wake_after(3.0)
    assert worker.next_wake == pytest.approx(2.0)
    # A run makes the timer needless: its end sets the next one.
    woken.wake()
    assert worker.next_wake is None


def test_after_an_error_the_runs_come_at_growing_intervals_until_one_succeeds(woken, worker):
    woken.wake()
    pauses = []
    for _ in range(8):
        worker.end(error="OperationalError: the database is away")
        pauses.append(worker.next_wake)
        worker.advance(worker.next_wake)
    assert 0.1 < pauses[0] < 1
    assert all(2 < pause <= 7.5 for pause in pauses[-2:])
    worker.end(next_due=0.0)
    worker.end(error="again")
    assert worker.next_wake < 1


def test_a_lost_child_is_told_to_the_next_run_which_begins_at_once(woken, worker):
    woken.wake()
    first = worker.started[0].run
    worker.started[0].error_callback("WorkerLostError")
    assert [started.lost for started in worker.started] == [[], [first]]
    second = worker.started[1].run
    # If that one is lost as well, the third knows of both.
    worker.started[1].error_callback("TimeLimitExceeded")
    assert worker.started[2].lost == [second, first]
    worker.end(next_due=0.0)
    assert worker.started[3].lost == []


def test_a_run_that_no_child_accepted_before_the_connection_broke_is_forgotten(woken, worker):
    worker.accepts = False
    woken.wake()
    worker.advance(1)
    woken.wake()
    lost = [started.run for started in worker.started]
    assert len(lost) == 2
    # Celery has emptied its pool, and calls nobody back.
    woken.connect(worker)
    worker.accepts = True
    worker.advance(0)
    assert (len(worker.started), sorted(worker.started[-1].lost)) == (3, sorted(lost))


def test_a_run_that_goes_on_when_the_connection_breaks_is_not_forgotten(woken, worker):
    woken.wake()
    woken.connect(worker)
    worker.advance(RUN_ALONE_SECONDS)
    assert worker.started[-1].lost == []
    worker.end(0)
    worker.end(1)
    assert woken._running == {}


def strategy(task, worker, *queues):
    worker.app.amqp = SimpleNamespace(queues=SimpleNamespace(consume_from=dict.fromkeys(queues)))
    return task.Strategy(task, worker.app, worker)


def test_a_worker_runs_only_the_tasks_of_its_queues(worker):
    class Woken(WokenTask):
        name = "woken"
        queue_name = "results"
        run_in_child = staticmethod(lambda run, lost: Run([]))

    for queues, runs in ((("analysis", "housekeeping"), 0), (("results", "housekeeping"), 1)):
        strategy(Woken(), worker, *queues)
        worker.advance(20)
        assert len(worker.started) == runs


def test_a_pool_that_stops_takes_no_run(woken, worker):
    worker.stopping = True
    woken.wake()
    assert woken._running == {}


def event(kind, task_id="submission-7"):
    return ended(task_id, {"submission_id": 7}, began=990.0, outcome="applied", kind=kind)


def types(worker):
    return [(kind, fields["uuid"]) for kind, fields in worker.events]


def test_every_row_is_a_task_in_flower(woken, worker):
    woken.on_message(message(7, 8), None)
    assert types(worker) == [("task-received", "submission-7"), ("task-received", "submission-8")]
    assert worker.events[0][1]["kwargs"] == "{'submission_id': 7}"
    worker.events.clear()
    worker.end(events=[event("succeeded")])
    assert types(worker) == [("task-started", "submission-7"), ("task-succeeded", "submission-7")]
    assert worker.events[0][1]["timestamp"] == 990.0
    assert worker.events[1][1]["result"] == "applied"


def test_a_row_that_no_message_told_of_is_received_first_and_a_retried_one_only_once(woken, worker):
    woken.wake()
    worker.end(events=[event("retried")])
    woken.wake()
    worker.end(events=[event("failed")])
    assert [kind for kind, _ in worker.events] == [
        *("task-received", "task-started", "task-retried"),
        *("task-started", "task-failed"),
    ]
    assert worker.events[-1][1]["exception"] == "applied"


def test_what_flower_shows_as_waiting_is_bounded(woken, worker, monkeypatch):
    monkeypatch.setattr(wake_ups, "SHOWN_AS_WAITING", 3)
    woken.on_message(message(*range(10)), None)
    assert list(woken._waiting) == ["submission-7", "submission-8", "submission-9"]


def test_without_flower_nothing_is_sent(woken, worker):
    worker.event_dispatcher = None
    woken.on_message(message(7), None)
    worker.end(events=[event("succeeded")])


def test_the_base_class_names_what_a_task_has_to_say():
    with pytest.raises(NotImplementedError):
        WokenTask().rows_of_message({})
