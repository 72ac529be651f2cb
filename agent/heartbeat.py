"""The heartbeat: how far each lease is, told to the server, and the end of those that the server has closed."""

import random
import threading
import time

import requests

from agent import leases
from agent.supply import TICK
from agent.work import Shift

HEARTBEAT = 60.0  # seconds between two heartbeats of a lease
SILENCE = 10.0  # seconds without heartbeats after one that got no answer


def beat(shift: Shift, ended: threading.Event) -> None:
    """The thread's work, until `ended`. One thread speaks for all lanes."""
    session = requests.Session()
    due: dict[str, float] = {}
    while not ended.wait(TICK):
        for lane in shift.lanes:
            held = lane.held
            if held is None or held.over:
                continue
            work_id = held.lease.work_id
            if time.monotonic() < due.setdefault(work_id, lane.since + HEARTBEAT):
                continue
            standing = leases.progress(session, shift.server, shift.client_id, work_id, held.curves_run)
            # Agents that were started together need not come together for ever.
            due[work_id] = time.monotonic() + max(standing.retry_after, HEARTBEAT * random.uniform(0.75, 1.0))
            if standing.state == "over":
                lane.over(held, standing.message)
            elif standing.state == "unclear":
                # What one lease could not get through, the next will not either.
                due = {each: max(moment, time.monotonic() + SILENCE) for each, moment in due.items()}
                break
        at_hand = {lane.held.lease.work_id for lane in shift.lanes if lane.held}
        due = {work_id: moment for work_id, moment in due.items() if work_id in at_hand}
