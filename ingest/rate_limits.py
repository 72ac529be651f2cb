"""How many requests a client and an address may make: counted in Redis for all processes, in fixed windows.

An address is counted before a key is looked up, a client once it is known to be that: nobody spends what is another's.
A counter costs one round trip; flask-limiter does the same in several, at several times the cost. A broker that is away
is no reason to refuse anything: nothing is counted then, and it is left alone for some seconds.
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
from ingest.problems import Problem
from tasks import broker_circuit

log = structlog.get_logger("limits")

PREFIX = "ecm:limit:"
TIMEOUT = 0.5
PAGES = ("pages", "admin_pages")
WINDOWS = {"second": 1, "minute": 60, "hour": 3600}


class Limit(NamedTuple):
    """At most so many requests in each window of so many seconds."""

    most: int
    seconds: int


class LimitState(NamedTuple):
    """How one counter stands: the limit, what is left of it, and when the next window begins, in seconds."""

    most: int
    left: int
    reset: int


def read_limit(text: str) -> Limit | None:
    """The limit that a setting such as 6000/minute means; None for off."""
    if text == "off":
        return None
    most, _, window = text.partition("/")
    return Limit(int(most), WINDOWS[window])


# Tries to log in, from one address: a person mistypes, and does not guess.
LOGINS = Limit(10, WINDOWS["minute"])


class Counters:
    """The counters of all clients and addresses."""

    def __init__(self, settings: Settings) -> None:
        self.limits = {
            "client": read_limit(settings.rate_limit_per_client),
            "address": read_limit(settings.rate_limit_per_address),
            "login": LOGINS,
        }
        # redis-py would try again three times, each with its own timeout.
        self._redis: redis.Redis = redis.Redis.from_url(
            settings.redis_url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT, retry=Retry(NoBackoff(), 0)
        )

    def count(self, kind: str, name: str) -> LimitState | None:
        """Count a request for a `client` or an `address`, or a try to log in (`login`) from one; how it stands then.

        None: unlimited, or Redis is away.
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
    """Count this request for its address; raises a 429 problem if there were too many.

    Whoever asks after the server's health, or for the files that pages load, is not counted.
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
    """Count a try to log in for its address; raises a 429 problem."""
    _count("login", request.remote_addr or "")


def _count(kind: str, name: str) -> None:
    state = current_app.config["LIMITS"].count(kind, name)
    if state is None:
        return
    if "limit" not in g or state.left * g.limit.most < g.limit.left * state.most:
        g.limit = state  # the one that is nearest to its end is what the answer tells
    if g.limit.left < 0:
        most, _, reset = g.limit
        detail = f"More than {most} requests; ask again in {reset} seconds."
        raise Problem(429, "too_many_requests", detail, headers={"Retry-After": str(reset)})


def set_limit_headers(response: Response) -> Response:
    """Say in an answer's headers how its limit stands (the IETF's draft on RateLimit header fields)."""
    if "limit" in g:
        response.headers["RateLimit-Limit"] = str(g.limit.most)
        response.headers["RateLimit-Remaining"] = str(max(0, g.limit.left))
        response.headers["RateLimit-Reset"] = str(g.limit.reset)
    return response
