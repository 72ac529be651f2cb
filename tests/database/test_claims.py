"""Claims: which work each client gets, in which order, and the answer when there is none."""

import uuid
from datetime import UTC, datetime

import pytest
from pipeline import SETTINGS, assert_sound, composite, result, rows, run_sql, scalar, set_targets, submit
from primes import prime, product

from coordinator import effort
from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import lease_lifecycle, registry, targets
from coordinator.composites.eligibility import Eligibility
from coordinator.effort import planning
from coordinator.housekeeping import lease_expiry
from coordinator.leases import claims, reservations
from coordinator.leases.work_request import Claim, NoWork, WorkRequest

MINUTE = SETTINGS.model_copy(update={"lease_target_minutes": 1})


def load(engine, *digits, **columns):
    """Register products of two primes, one of each number of digits; returns their ids. `columns` are set on all."""
    ids = []
    for which, size in enumerate(digits):
        number = product(prime(size // 2, which), prime(size - size // 2 + 1, which + 50))  # just above 10**(size - 1)
        with unit_of_work(engine, "load") as connection:
            ids.append(registry.register_new(connection, str(number), number, is_prime=False))
    if columns:
        set_targets(engine, ids, **columns)
    return ids


def claim(engine, client="alice", settings=MINUTE, **fields):
    return claims.claim(engine, WorkRequest(client, **fields), settings)


def shared(engine, client="alice", settings=MINUTE, **fields):
    return claim(engine, client, settings, shared=True, **fields)


def lease(engine, made):
    lease_id = made.work_id if isinstance(made, Claim) else made.id
    (row,) = rows(engine, "SELECT * FROM work_assignments WHERE id = :id", id=lease_id)
    return row


def state(engine, composite_id):
    return composite(engine, composite_id)


# Orders and filters --------------------------------------------------------------------------------------------------


def test_each_order_has_its_own_first_number(engine):
    small, done, dear, large = load(engine, 90, 100, 110, 150)
    set_targets(engine, [small, dear, large], planned_t_level=9, current_t_level=9)
    set_targets(engine, [dear], priority=5)
    set_targets(engine, [large], work_value=3)
    first = {
        order: claim(engine, order=order).composite.id for order in ("priority", "best", "progressive", "standard")
    }
    assert first == {"priority": dear, "best": large, "progressive": done, "standard": small}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"min_digits": 101}, 110),
        ({"min_digits": 101, "max_digits": 109}, None),
        ({"max_digits": 90}, 90),
        ({"min_priority": 3}, 110),
        ({"min_target": 45}, 150),
        ({"max_target": 27}, None),
        ({"max_current": 0}, 100),
        ({"project": "aliquot"}, 150),
        ({"project": "no such project"}, None),
    ],
)
def test_filters_leave_only_matching_numbers(engine, filters, expected):
    small, _, dear, large = load(engine, 90, 100, 110, 150)
    set_targets(engine, [dear], priority=3)
    set_targets(engine, [small], current_t_level=1, planned_t_level=1)
    with unit_of_work(engine, "project") as connection:
        registry.join_project(connection, large, "aliquot")
    made = claim(engine, **filters)
    if expected is None:
        assert isinstance(made, NoWork)
        assert 30 <= made.retry_after <= 600
        assert str(made.retry_after) in made.message
    else:
        assert made.composite.digit_length == expected


def test_numbers_that_need_no_work_are_never_leased(engine):
    ids = load(engine, 90, 91, 92, 93)
    for client in ("alice", "bob"):
        submit(engine, result(state(engine, ids[0]).number, client=client, b1=3_000_000, curves=10_000))
    submit(engine, result(state(engine, ids[1]).number, str(prime(45, 1)), curves=1))
    run_sql(engine, "UPDATE composites SET is_prime = NULL WHERE id = :id", id=ids[2])
    set_targets(engine, ids[2:3], is_prime=None)
    set_targets(engine, ids[3:], hold="paused")
    for method in ("ecm", "pm1"):
        made = claim(engine, method=method)
        # At its target a number needs no more curves, but it still needs P-1.
        assert isinstance(made, NoWork) or (method, made.composite.id) == ("pm1", ids[0])
    with unit_of_work(engine, "refresh") as connection:
        lease_lifecycle.refresh_eligibility(connection, targets.ids_of(connection, ids))
    assert [state(engine, one).ecm_eligible for one in ids] == [False] * 4
    assert_sound(engine)


# What a lease is -----------------------------------------------------------------------------------------------------


def test_an_unshared_lease_covers_the_whole_number_for_days(engine):
    (only,) = load(engine, 120)
    made = claim(engine)
    row = lease(engine, made)
    assert (row.composite_id, row.curves, row.status) == (only, None, "assigned")
    assert abs((row.expires_at - row.created_at).total_seconds() - 5 * 86_400) < 5
    assert (made.plan.b1, made.shared) == (25_000, False)
    for again in (claim(engine, "bob"), shared(engine, "bob")):
        assert isinstance(again, NoWork)
    lease_lifecycle.abandon(engine, made.work_id, None, None)
    assert isinstance(claim(engine, "bob", days=0.5), Claim)
    assert_sound(engine)


def test_shared_leases_follow_one_another_up_to_the_target_and_no_further(engine):
    load(engine, 90)
    made, vector = [], effort.no_effort()
    while isinstance(one := shared(engine, f"client-{len(made)}"), Claim):
        made.append(one)
        expected = planning.plan_curves(vector, 90, effort.target_t_level(90), planning.PlanRequest(1, 60))
        assert one.plan == expected
        vector = effort.add_curves(vector, one.plan.curves, one.plan.b1, one.plan.b2, one.plan.parametrization)
    assert len(made) > 1
    assert [one.plan.b1 for one in made] == sorted(one.plan.b1 for one in made)
    assert effort.t_level(vector) >= 90 * 4 / 13
    assert_sound(engine)
    # The curves of a lease that is given back are leased again.
    lease_lifecycle.abandon(engine, made[0].work_id, "client-0", "going home")
    assert isinstance(shared(engine, "late"), Claim)
    assert_sound(engine)


def test_the_number_of_clients_that_share_a_number_is_limited(engine, monkeypatch):
    monkeypatch.setattr(
        "coordinator.composites.eligibility.settings",
        lambda: SETTINGS.model_copy(update={"max_active_per_composite": 2}),
    )
    load(engine, 200)
    kinds = [type(shared(engine, name)) for name in "abc"]
    assert kinds == [Claim, Claim, NoWork]


def test_a_fast_client_gets_a_longer_lease_of_the_same_time(engine):
    load(engine, 150, 151)
    number = rows(engine, "SELECT number FROM composites ORDER BY id")[0].number
    usual = planning.seconds_per_curve(50_000, -1, 150) * 100
    submit(engine, result(number, client="fast", results={"execution_time": usual / 8}))
    submit(engine, result(number, client="slow", results={"execution_time": usual * 4}))
    plans = {name: shared(engine, name, min_digits=151, b1=3_000_000).plan for name in ("fast", "unknown", "slow")}
    curves = {name: plan.curves for name, plan in plans.items()}
    assert curves["fast"] == pytest.approx(8 * curves["unknown"], rel=0.1)
    assert curves["slow"] == pytest.approx(curves["unknown"] / 4, rel=0.3)


def test_a_client_may_choose_b1_and_stage_1_only(engine):
    load(engine, 120)
    made = shared(engine, b1=123_456, stage1_only=True)
    assert (made.plan.b1, made.plan.b2) == (123_456, 0)
    assert (lease(engine, made).b1, lease(engine, made).b2) == (123_456, 0)


def test_a_named_number_is_leased_or_its_reason_is_given(engine):
    small, named, held, gone = load(engine, 90, 100, 101, 102)
    text = state(engine, named).number
    assert claim(engine, composite=text).composite.id == named
    assert "open lease" in claim(engine, "bob", composite=text).message
    set_targets(engine, [held], hold="parked", hold_reason="x crashed")
    assert "is set aside: x crashed" in claim(engine, composite=state(engine, held).number).message
    submit(engine, result(state(engine, gone).number, str(prime(51, 3)), curves=1))
    assert "fully factored" in claim(engine, composite=state(engine, gone).number).message
    assert "is not a number of this server" in claim(engine, composite="2^67-1").message
    submit(engine, result(state(engine, small).number, b1=3_000_000, curves=10_000))
    assert "reached its target" in claim(engine, composite=state(engine, small).number).message


def test_prior_work_has_a_t_level_of_its_own(engine):
    (only,) = load(engine, 120)
    run_sql(
        engine,
        "WITH value AS (INSERT INTO worked_values (value_sha256, value) SELECT value_sha256, current_composite"
        "  FROM composites WHERE id = :id RETURNING id),"
        " source AS (INSERT INTO target_sources (target_id, value_id)"
        "  SELECT c.target_id, v.id FROM composites c, value v WHERE c.id = :id)"
        " INSERT INTO value_effort (value_id, b1, b2, parametrization, prior_curves)"
        " SELECT id, 50000, -1, 1, 261 FROM value",
        id=only,
    )
    assert claim(engine).prior_t_level == pytest.approx(25, abs=0.1)


# P-1 and P+1 ---------------------------------------------------------------------------------------------------------


def test_p1_work_is_for_numbers_that_lack_it_at_one_step_above_their_target(engine):
    (only,) = load(engine, 120)
    both = claim(engine, method="p1")
    assert (both.pm1_b1, both.pp1_b1) == (11_000_000, 11_000_000)  # t36.9: 3e6, and one step above it
    assert isinstance(claim(engine, "bob", method="pm1"), NoWork)
    assert isinstance(shared(engine, "bob"), Claim)  # curves do not depend on P-1 and P+1
    number = state(engine, only).number
    submit(engine, result(number, method="pm1", b1=11_000_000, curves=1, work_id=str(both.work_id)))
    submit(engine, result(number, method="pp1", b1=3_000_000, curves=1, work_id=str(both.work_id)))
    lease_lifecycle.complete(engine, both.work_id, "alice")
    assert isinstance(claim(engine, "bob", method="pm1"), NoWork)
    rest = claim(engine, "bob", method="p1")
    assert (rest.pm1_b1, rest.pp1_b1) == (None, 11_000_000)
    assert_sound(engine)


def test_stage_1_of_p1_alone_does_not_complete_the_lease(engine):
    load(engine, 120)
    number = rows(engine, "SELECT number FROM composites")[0].number
    submit(engine, result(number, method="pm1", b1=11_000_000, b2=0, curves=1))
    assert claim(engine, method="pm1").pm1_b1 == 11_000_000


# The life of a lease -------------------------------------------------------------------------------------------------


def test_a_heartbeat_extends_only_leases_that_advance_and_counts_no_more_than_their_curves(engine):
    load(engine, 120)
    made = shared(engine)
    run_sql(engine, "UPDATE work_assignments SET expires_at = now() + interval '1 minute'")

    def beat(curves):
        before = lease(engine, made).expires_at
        return lease_lifecycle.heartbeat(engine, made.work_id, "alice", curves, "on it").expires_at - before

    assert beat(0).total_seconds() == 0
    assert beat(3).total_seconds() > 1000
    run_sql(engine, "UPDATE work_assignments SET expires_at = now() + interval '1 minute'")
    assert beat(3).total_seconds() == beat(2).total_seconds() == 0
    assert beat(10**9).total_seconds() > 1000
    run_sql(engine, "UPDATE work_assignments SET expires_at = now() + interval '1 minute'")
    assert beat(10**9).total_seconds() == 0
    row = lease(engine, made)
    assert (row.status, row.curves_completed, row.curves_submitted, row.message) == ("running", row.curves, 0, "on it")


def test_results_complete_a_lease_whatever_its_heartbeats_reported(engine):
    load(engine, 120)
    made = shared(engine)
    number, curves = made.composite.number, made.plan.curves
    lease_lifecycle.heartbeat(engine, made.work_id, "alice", curves)
    submit(engine, result(number, b1=made.plan.b1, curves=curves - 1, work_id=str(made.work_id), sigma="1:7"))
    assert lease(engine, made).status == "running"
    submit(engine, result(number, b1=made.plan.b1, curves=1, work_id=str(made.work_id), sigma="1:8"))
    assert lease(engine, made).status == "completed"
    assert state(engine, made.composite.id).open_leases == 0
    assert_sound(engine)


def test_the_leases_of_a_finished_number_end_with_a_message(engine):
    load(engine, 120)
    made, other = shared(engine), shared(engine, "bob")
    submit(engine, result(made.composite.number, str(prime(60)), curves=1, work_id=str(made.work_id)))
    answer = lease_lifecycle.heartbeat(engine, other.work_id, "bob", 5)
    assert (answer.status, answer.message) == ("completed", lease_lifecycle.NOTHING_LEFT)
    assert (answer.curves_completed, answer.expires_at) == (0, lease(engine, other).expires_at)
    assert lease_lifecycle.complete(engine, other.work_id, "bob").status == "completed"
    assert_sound(engine)


def test_leases_that_the_target_no_longer_needs_are_ended(engine):
    load(engine, 120)
    made = [shared(engine, name) for name in "ab"]
    submit(engine, result(made[0].composite.number, b1=11_000_000, curves=10_000, client="c"))
    assert [
        lease_lifecycle.heartbeat(engine, one.work_id, name, 1).message for one, name in zip(made, "ab", strict=True)
    ] == [lease_lifecycle.TARGET_REACHED] * 2
    assert_sound(engine)


def test_a_lease_belongs_to_one_client(engine):
    load(engine, 120)
    made = shared(engine)
    for call in (
        lambda: lease_lifecycle.advance(engine, made.work_id, "bob", "claimed"),
        lambda: lease_lifecycle.heartbeat(engine, made.work_id, "bob", 1),
        lambda: lease_lifecycle.complete(engine, made.work_id, "bob"),
        lambda: lease_lifecycle.abandon(engine, made.work_id, "bob", None),
        lambda: lease_lifecycle.heartbeat(engine, uuid.uuid4(), "alice", 1),
    ):
        before = lease(engine, made)
        with pytest.raises(lease_lifecycle.LeaseNotFoundError):
            call()
        assert lease(engine, made) == before


# Holds ---------------------------------------------------------------------------------------------------------------


def give_up(engine, *clients, reason="it crashes"):
    for client in clients:
        made = shared(engine, client)
        lease_lifecycle.abandon(engine, made.work_id, client, reason)


def test_a_number_that_several_clients_give_up_in_a_row_is_set_aside(engine):
    (only,) = load(engine, 120)
    give_up(engine, "a", "a", "a", "b")
    assert state(engine, only).hold is None
    give_up(engine, "c", reason="no memory")
    row = state(engine, only)
    assert (row.hold, row.ecm_eligible, row.pm1_eligible) == ("parked", False, False)
    assert row.hold_reason == "c: no memory; b: it crashes; a: it crashes"
    assert isinstance(shared(engine, "d"), NoWork)
    assert_sound(engine)


def test_curves_or_a_completed_lease_in_between_prevent_the_hold(engine):
    (only,) = load(engine, 120)
    give_up(engine, "a", "b")
    made = shared(engine, "c")
    submit(engine, result(made.composite.number, client="c", curves=1, work_id=str(made.work_id)))
    lease_lifecycle.abandon(engine, made.work_id, "c", "going home")
    give_up(engine, "d", "e")
    assert state(engine, only).hold is None
    give_up(engine, "f")
    assert state(engine, only).hold == "parked"


# Cancelled by an operator --------------------------------------------------------------------------------------------

CANCELLED_LEASES = {
    "some curves": {"shared": True},
    "a whole number": {},
    "P-1 and P+1": {"method": "p1"},
}


@pytest.mark.parametrize("kind", CANCELLED_LEASES)
@pytest.mark.parametrize(("reason", "message"), [(None, "cancelled by an operator"), ("not now", "not now")])
def test_a_lease_that_an_operator_cancels_has_failed_once_and_says_so(engine, kind, reason, message):
    (only,) = load(engine, 120)
    made = claim(engine, **CANCELLED_LEASES[kind])
    for _ in range(2):
        row = reservations.cancel(engine, made.work_id, reason)
        assert (row.status, row.message) == ("failed", message)
    closed = lease(engine, made)
    assert closed.is_cancelled
    assert reservations.cancel(engine, made.work_id, "once more").message == message
    assert lease(engine, made) == closed
    # Its client reads it in its list and in the answer to its heartbeat, and somebody else gets the number.
    (listed,) = lease_lifecycle.client_leases(engine, "alice", 10)
    assert (listed.status, listed.message) == ("failed", message)
    beat = lease_lifecycle.heartbeat(engine, made.work_id, "alice", 1)
    assert (beat.status, beat.message) == ("failed", message)
    assert state(engine, only).open_leases == 0
    assert isinstance(claim(engine, "bob", **CANCELLED_LEASES[kind]), Claim)
    assert_sound(engine)


@pytest.mark.parametrize("status", ["completed", "failed", "timeout"])
def test_a_lease_that_is_closed_is_not_cancelled(engine, status):
    load(engine, 120)
    made = shared(engine)
    if status == "completed":
        lease_lifecycle.complete(engine, made.work_id, "alice")
    elif status == "failed":
        lease_lifecycle.abandon(engine, made.work_id, "alice", "it crashes")
    else:
        run_sql(engine, "UPDATE work_assignments SET expires_at = now() - interval '1 second'")
        lease_expiry.expire_leases(engine, datetime.now(UTC))
    closed = lease(engine, made)
    assert closed.status == status
    reservations.cancel(engine, made.work_id, "too late")
    assert lease(engine, made) == closed


def test_cancelled_leases_do_not_count_as_given_up(engine):
    (only,) = load(engine, 120)
    give_up(engine, "a")
    for client, reason in (("b", None), ("c", "its machine is gone"), ("d", "it crashes"), ("e", None)):
        made = shared(engine, client)
        reservations.cancel(engine, made.work_id, reason)
        # Its client learns of it and gives it up, too: it is closed already.
        lease_lifecycle.abandon(engine, made.work_id, client, "it crashes")
    assert state(engine, only).hold is None
    # They say nothing in favour of the number either: two more clients are the second and the third.
    give_up(engine, "f")
    assert state(engine, only).hold is None
    give_up(engine, "g")
    row = state(engine, only)
    assert (row.hold, row.hold_reason) == ("parked", "g: it crashes; f: it crashes; a: it crashes")
    assert_sound(engine)


def test_curves_of_a_cancelled_lease_speak_for_a_number(engine):
    load(engine, 120)
    give_up(engine, "a", "b")
    made = shared(engine, "c")
    reservations.cancel(engine, made.work_id, None)
    late = result(made.composite.number, client="c", curves=made.plan.curves, work_id=str(made.work_id))
    submit(engine, late)
    row = lease(engine, made)
    assert (row.status, row.curves_submitted) == ("failed", made.plan.curves)
    give_up(engine, "d", "e")
    assert state(engine, made.composite.id).hold is None
    assert_sound(engine)


def test_a_released_reservation_is_completed_and_a_cancelled_one_has_failed(engine):
    (only,) = load(engine, 120)
    for end, status, is_cancelled in (
        (reservations.release, "completed", False),
        (reservations.end, "completed", False),
        (reservations.cancel, "failed", True),
    ):
        taken = reservations.reserve(engine, only, "bob", "nfs", 1, details=None, max_digits=1000)
        row = end(engine, taken.id, None)
        assert (row.status, lease(engine, row).is_cancelled) == (status, is_cancelled)
    made = claim(engine)
    assert reservations.end(engine, made.work_id, None).status == "failed"
    assert_sound(engine)


def test_the_eligibility_columns_equal_recalculated_ones(engine):
    ids = load(engine, 90, 120, 150)
    shared(engine, max_digits=90)
    claim(engine, min_digits=150)
    submit(engine, result(state(engine, ids[1]).number, curves=50))
    names = ", ".join(Eligibility._fields)
    before = rows(engine, f"SELECT {names} FROM targets ORDER BY id")
    run_sql(engine, "UPDATE targets SET ecm_eligible = NOT ecm_eligible, planned_t_level = 99, open_leases = 7")
    with unit_of_work(engine, "refresh") as connection:
        lease_lifecycle.refresh_eligibility(connection, targets.ids_of(connection, ids))
    assert rows(engine, f"SELECT {names} FROM targets ORDER BY id") == before
    assert scalar(engine, "SELECT count(*) FROM targets WHERE ecm_eligible") == 2
    assert state(engine, ids[2]).open_leases == 1


def test_p1_and_pm1_are_not_leased_twice(engine):
    (only,) = load(engine, 120)
    first = claim(engine, "a", method="pm1")
    rest = claim(engine, "b", method="p1")
    assert (first.pm1_b1, first.pp1_b1) == (11_000_000, None)
    assert (rest.pm1_b1, rest.pp1_b1, rest.method) == (None, 11_000_000, "pp1")
    assert lease(engine, rest).method == "pp1"  # the lease row lets the client resume after a crash
    assert isinstance(claim(engine, "c", method="p1"), NoWork)
    assert state(engine, only).open_leases == 2
