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

worker_concurrency = _settings.worker_concurrency
# Processes are replaced, to free memory that FLINT or a 50,000-digit number needed.
worker_max_tasks_per_child = 20_000

# A child that was killed has sent all it will ever send: what it had taken is taken again after this, not after 10 s.
worker_lost_wait = 1.0

task_time_limit = _settings.task_time_limit
task_soft_time_limit = max(1, _settings.task_time_limit - 5)
broker_transport_options = {
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

_every = timedelta(seconds=_settings.housekeeping_every)
# In memory: all intervals are short, and a schedule file can break.
beat_scheduler = "tasks.beat:HeartbeatScheduler"
beat_max_loop_interval = 2
beat_schedule = {
    "expire overdue leases": {"task": "tasks.housekeeping.expire_leases", "schedule": _every},
    "republish waiting rows": {"task": "tasks.housekeeping.republish_stale", "schedule": _every},
    "expire residues": {"task": "tasks.housekeeping.expire_residues", "schedule": 3 * _every},
    "delete orphaned residue files": {
        "task": "tasks.housekeeping.collect_residue_garbage",
        "schedule": timedelta(hours=1),
    },
    "aggregate client statistics": {
        "task": "tasks.housekeeping.aggregate_statistics",
        "schedule": 3 * _every,
    },
    "prune": {"task": "tasks.housekeeping.prune", "schedule": timedelta(hours=1)},
}
