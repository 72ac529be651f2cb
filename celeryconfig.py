"""Celery's settings, each with its reason."""

from datetime import timedelta

from kombu import Exchange, Queue

from config.settings import settings

_settings = settings()

broker_url = _settings.redis_url or "redis://127.0.0.1:6379/0"
# The database is the source of truth: outcomes are there, so a result backend would only be a second copy.
task_ignore_result = True
result_backend = None

# Nothing but JSON: a broker that somebody else can write to must not become a way to run code here.
task_serializer = "json"
accept_content = ["json"]

# A message is acknowledged when its unit of work has ended, so a worker that dies has its messages delivered again ...
task_acks_late = True
# ... also when only the child process died; what kills its worker every time is ended by its own counted tries.
task_reject_on_worker_lost = True
# A task that failed or ran out of time is acknowledged: its row still waits, and housekeeping publishes it again.
task_acks_on_failure = True
task_acks_on_timeout = True

# Small, so that a worker's death leaves few messages waiting for redelivery, and large enough to keep it busy.
worker_prefetch_multiplier = 8
worker_concurrency = _settings.worker_concurrency
# Memory that FLINT or a 50,000-digit number once needed is given back in the end.
worker_max_tasks_per_child = 20_000

task_time_limit = _settings.task_time_limit
task_soft_time_limit = max(1, _settings.task_time_limit - 5)
_longest_retry_delay = 60
# Redis has no acknowledgements of its own: Celery delivers again what stayed unacknowledged this long. It must exceed
# every time limit and retry delay, or what is still being worked on would be delivered twice.
broker_transport_options = {
    "visibility_timeout": 2 * (max(_settings.analysis_time_limit, _settings.task_time_limit) + _longest_retry_delay),
    # A broker that froze or vanished without closing its connections is noticed, and the worker reconnects.
    "socket_connect_timeout": 3,
    "socket_timeout": 10,
    "socket_keepalive": True,
    "health_check_interval": 10,
    # Higher priorities and fan-out by key pattern are not used; names of their own keep two installations apart.
    "global_keyprefix": "ecm:",
}
# A broker may be away for days; a worker that has given up would need an operator.
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
# Making a connection costs ten times what publishing over it does.
broker_pool_limit = 16
broker_pool_acquire_timeout = 0.5
worker_cancel_long_running_tasks_on_connection_loss = False

# Without these, publishing to a frozen broker hangs for 20 s and more, and to a dead one for several.
task_publish_retry = True
task_publish_retry_policy = {"max_retries": 0, "interval_start": 0}

# A split of 75 digits takes minutes: analysis has a worker of its own, so that neither results nor housekeeping wait
# behind it. Those two share a worker, which takes from its queues in turn.
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

# Flower shows each submission as soon as a worker has received its message.
worker_send_task_events = True
worker_consumer = "tasks.consumer:Consumer"
task_send_sent_event = False
worker_hijack_root_logger = False
timezone = "UTC"

# A housekeeping message that no worker took before the next one was due is of no use any more.
_every = timedelta(seconds=_settings.housekeeping_every)
_expires = {"expires": _settings.housekeeping_every}
# In memory: all intervals are short, and a schedule file is one more thing to break.
beat_scheduler = "tasks.beat:HeartbeatScheduler"
beat_max_loop_interval = 2
beat_schedule = {
    "expire overdue leases": {"task": "tasks.housekeeping.expire_leases", "schedule": _every, "options": _expires},
    "republish what waits": {"task": "tasks.housekeeping.republish_stale", "schedule": _every, "options": _expires},
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
