"""Rate limits of clients and addresses: counted in Redis for all processes, in fixed windows.

A request counts for its address before its key is looked up, and for a client once the client is known, so that nobody
uses up the limit of another. A counter costs one round trip; flask-limiter needs several. While the broker is away
nothing is counted or refused, and the circuit breaker keeps requests from waiting for it.
"""

import math
from time import time
from typing import NamedTuple

import redis
import structlog
from flask import Response, current_app, g, request
from redis.backoff import NoBackoff
from redis.retry import Retry

from config.settings import Settings
from ingest import client_authentication
from ingest.openapi import API
from ingest.problems import ProblemError
from tasks import broker_circuit

log = structlog.get_logger("limits")

PREFIX = "ecm:limit:"
TIMEOUT = 0.5
PAGES = ("pages", "admin_pages")
WINDOWS = {"second": 1, "minute": 60, "hour": 3600}


class Limit(NamedTuple):
    """At most `most` requests in each window of `seconds`."""

    most: int
    seconds: int


class LimitState(NamedTuple):
    """The state of one counter: the limit, the requests left, and the seconds until the next window."""

    most: int
    left: int
    reset: int


def read_limit(text: str) -> Limit | None:
    """Return the limit that a setting such as 6000/minute means; None for off."""
    if text == "off":
        return None
    most, _, window = text.partition("/")
    return Limit(int(most), WINDOWS[window])


# Attempts to log in from one address: enough for mistyping, too few for guessing.
LOGINS = Limit(10, WINDOWS["minute"])


class Counters:
    """The counters of all clients and addresses."""

    def __init__(self, settings: Settings) -> None:
        self.limits = {
            "client": read_limit(settings.rate_limit_per_client),
            "address": read_limit(settings.rate_limit_per_address),
            "login": LOGINS,
        }
        # By default redis-py retries three times, each with its own timeout.
        self._redis: redis.Redis = redis.Redis.from_url(
            settings.redis_url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT, retry=Retry(NoBackoff(), 0)
        )

    def count(self, kind: str, name: str) -> LimitState | None:
        """Count a request for a `client` or an `address`, or an attempt to log in (`login`); returns the new state.

        Returns None if there is no limit, or if Redis is away.
        """
        limit, now = self.limits[kind], time()
        if limit is None or broker_circuit.is_open():
            return None
        key = f"{PREFIX}{kind}:{int(now // limit.seconds)}:{name[:200]}"
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.incr(key)
        pipeline.expire(key, limit.seconds + 1)
        try:
            counted = pipeline.execute()[0]
        except (redis.RedisError, OSError) as error:
            broker_circuit.open_circuit()
            log.warning("The broker does not answer; requests are not limited", error=str(error)[:200])
            return None
        return LimitState(limit.most, limit.most - counted, math.ceil(limit.seconds - now % limit.seconds))


def limit_request() -> None:
    """Count this request for its address; raises a 429 problem beyond the limit.

    Requests for the health of the server and for the static files of pages do not count.
    """
    is_page = request.blueprint in PAGES and request.endpoint != "pages.static"
    if is_page or (request.path.startswith(f"{API}/") and request.path != f"{API}/health"):
        _count("address", request.remote_addr or "")


def limit_named() -> None:
    """Count this request for the client that its key, address or headers name, if any does."""
    client = client_authentication.client_of_key() or next(iter(client_authentication.named_clients()), None)
    if client and request.path.startswith(f"{API}/"):
        limit_client(client)


def limit_client(client_id: str) -> None:
    """Count this request for a client, unless it was counted for one already; raises a 429 problem."""
    if "limited_client" not in g:
        g.limited_client = client_id
        _count("client", client_id)


def limit_login() -> None:
    """Count an attempt to log in for its address; raises a 429 problem beyond the limit."""
    _count("login", request.remote_addr or "")


def _count(kind: str, name: str) -> None:
    state = current_app.config["LIMITS"].count(kind, name)
    if state is None:
        return
    if "limit" not in g or state.left * g.limit.most < g.limit.left * state.most:
        g.limit = state  # the answer shows the limit that is closest to its end
    if g.limit.left < 0:
        most, _, reset = g.limit
        detail = f"More than {most} requests; ask again in {reset} seconds."
        raise ProblemError(429, "too_many_requests", detail, headers={"Retry-After": str(reset)})


def set_limit_headers(response: Response) -> Response:
    """Set the RateLimit headers of an answer (IETF draft-ietf-httpapi-ratelimit-headers)."""
    if "limit" in g:
        response.headers["RateLimit-Limit"] = str(g.limit.most)
        response.headers["RateLimit-Remaining"] = str(max(0, g.limit.left))
        response.headers["RateLimit-Reset"] = str(g.limit.reset)
    return response
