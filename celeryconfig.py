"""Celery's settings, each with its reason."""

from datetime import timedelta

from kombu.entity import Exchange, Queue

from config.settings import settings

_settings = settings()

broker_url = _settings.redis_url or "redis://127.0.0.1:6379/0"
# The outcomes are in the database, so a result backend would only be a second copy.
task_ignore_result = True
result_backend = None

# Only JSON: pickle would let anybody who can write to the broker run code here.
task_serializer = "json"
accept_content = ["json"]

# Messages are acknowledged after their unit of work, so the messages of a worker that dies are delivered again ...
task_acks_late = True
# ... also when only the child process dies. Counted delivery attempts end a submission that kills its worker each time.
task_reject_on_worker_lost = True
# A task that fails or exceeds its time limit is acknowledged: its row still waits, and housekeeping publishes it again.
task_acks_on_failure = True
task_acks_on_timeout = True

# Small, so that few messages wait for redelivery when a worker dies, and large enough to keep the worker busy.
worker_prefetch_multiplier = 8
worker_concurrency = _settings.worker_concurrency
# Processes are replaced, to free memory that FLINT or a 50,000-digit number needed.
worker_max_tasks_per_child = 20_000

task_time_limit = _settings.task_time_limit
task_soft_time_limit = max(1, _settings.task_time_limit - 5)
_longest_retry_delay = 60
# Redis has no acknowledgements of its own: Celery delivers a message again that is unacknowledged for this long. The
# time must exceed every time limit and retry delay, or tasks that still run would be delivered twice.
broker_transport_options = {
    "visibility_timeout": 2 * (max(_settings.analysis_time_limit, _settings.task_time_limit) + _longest_retry_delay),
    # With these the worker notices a broker that froze or vanished without closing its connections, and reconnects.
    "socket_connect_timeout": 3,
    "socket_timeout": 10,
    "socket_keepalive": True,
    "health_check_interval": 10,
    # A prefix of our own separates the keys from those of other programs in the same broker.
    "global_keyprefix": "ecm:",
}
# The broker may be away for days; a worker that gives up would need an operator.
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
# Opening a connection costs ten times as much as publishing over it.
broker_pool_limit = 16
broker_pool_acquire_timeout = 0.5
worker_cancel_long_running_tasks_on_connection_loss = False

# Without these, publishing to a frozen broker hangs for 20 s and more, and to a dead one for several.
task_publish_retry = True
task_publish_retry_policy = {"max_retries": 0, "interval_start": 0}

# A split of 75 digits takes minutes: analysis has a worker of its own, so that results and housekeeping do not wait for
# it. Those two share a worker, which takes messages from both queues in turn.
task_default_queue = "housekeeping"
_exchange = Exchange("ecm")
task_queues = [Queue(name, _exchange, routing_key=name) for name in ("results", "analysis", "housekeeping")]
task_default_exchange = "ecm"
task_default_routing_key = "housekeeping"
task_routes = {
    "tasks.results.*": {"queue": "results"},
    "tasks.analysis.*": {"queue": "analysis"},
    "tasks.housekeeping.*": {"queue": "housekeeping"},
}
imports = ["tasks.results", "tasks.analysis", "tasks.housekeeping"]

# With events, Flower shows each submission as soon as a worker has received its message.
worker_send_task_events = True
worker_consumer = "tasks.consumer:Consumer"
task_send_sent_event = False
worker_hijack_root_logger = False
timezone = "UTC"

# A housekeeping message expires when the next one is due.
_every = timedelta(seconds=_settings.housekeeping_every)
_expires = {"expires": _settings.housekeeping_every}
# In memory: all intervals are short, and a schedule file can break.
beat_scheduler = "tasks.beat:HeartbeatScheduler"
beat_max_loop_interval = 2
beat_schedule = {
    "expire overdue leases": {"task": "tasks.housekeeping.expire_leases", "schedule": _every, "options": _expires},
    "republish waiting rows": {"task": "tasks.housekeeping.republish_stale", "schedule": _every, "options": _expires},
    "expire residues": {"task": "tasks.housekeeping.expire_residues", "schedule": 3 * _every, "options": _expires},
    "delete orphaned residue files": {
        "task": "tasks.housekeeping.collect_residue_garbage",
        "schedule": timedelta(hours=1),
        "options": {"expires": 3600},
    },
    "aggregate client statistics": {
        "task": "tasks.housekeeping.aggregate_statistics",
        "schedule": 3 * _every,
        "options": _expires,
    },
    "prune": {"task": "tasks.housekeeping.prune", "schedule": timedelta(hours=1), "options": {"expires": 3600}},
}
