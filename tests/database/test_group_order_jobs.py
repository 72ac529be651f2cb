"""Group orders in the database: a result with a factor requests the job, and the job stores its finding."""

from gmpy2 import mpz
from pipeline import result, rows, run_jobs, submit

from coordinator.composites import group_orders
from coordinator.composites.group_orders import Finding
from coordinator.housekeeping import job_runner

P, Q, LARGE = 1000000000100011, 1000000000000037, mpz(2) ** 521 - 1


def pretend(monkeypatch, unexplained=()):
    """Replace the computation by findings that explain all factors but `unexplained`; returns its inputs."""
    asked = []

    def examine(claim):
        asked.append((claim.factor, claim.sigma, claim.parametrization, claim.b1, claim.b2))
        return Finding("12", "2^2 * 3", claim.factor not in unexplained, None)

    monkeypatch.setattr(group_orders, "examine", examine)
    return asked


def test_a_factor_with_a_sigma_gets_its_order(engine):
    number = str(P * LARGE)
    submit(engine, result(number, (str(P), "1:123456"), b1=200))
    run_jobs(engine)
    (row,) = rows(engine, f"SELECT * FROM factors WHERE factor = '{P}'")
    assert abs(int(row.group_order) - P - 1) ** 2 <= 4 * P
    assert row.is_explained is False
    assert row.order_remark.startswith("not explained")
    assert {job.state for job in rows(engine, "SELECT state FROM jobs")} == {"done"}


def test_each_prime_of_a_composite_find_is_tested(engine, monkeypatch):
    asked = pretend(monkeypatch, {str(Q)})
    submit(engine, result(str(P * Q * LARGE), (str(P * Q), "0:77"), b1=2000, b2=0))
    run_jobs(engine)
    assert sorted(asked) == sorted((str(prime), "77", 0, 2000, 0) for prime in (P, Q))
    stored = {row.factor: row for row in rows(engine, "SELECT factor, is_explained, order_remark FROM factors")}
    assert (stored[str(P)].is_explained, stored[str(Q)].is_explained) == (True, False)
    assert stored[str(P * Q)].is_explained is False
    assert stored[str(P * Q)].order_remark == f"its factor {Q} is not explained"


def test_without_a_sigma_or_ecm_no_job_is_requested(engine, monkeypatch):
    asked = pretend(monkeypatch)
    submit(engine, result(str(P * LARGE), str(P)))
    submit(engine, result(str(Q * LARGE), (str(Q), "0:5"), method="pp1"))
    assert rows(engine, "SELECT id FROM jobs WHERE kind = 'group_order'") == []
    run_jobs(engine)
    assert asked == []


def test_a_crash_of_the_job_leaves_the_factor_as_it_is(engine, monkeypatch):
    submit(engine, result(str(P * LARGE), (str(P), "0:5")))
    (job,) = rows(engine, "SELECT id FROM jobs WHERE kind = 'group_order'")

    def broken(claim):
        raise ArithmeticError("PARI counted no points")

    monkeypatch.setattr(group_orders, "examine", broken)
    for _ in range(6):
        try:
            job_runner.run_job(engine, job.id, max_deliveries=5, max_digits=1000)
        except ArithmeticError:
            continue
    ((state, error),) = rows(engine, "SELECT state, error FROM jobs WHERE kind = 'group_order'")
    assert state == "failed"
    assert "PARI counted no points" in error
    ((order, explained),) = rows(engine, f"SELECT group_order, is_explained FROM factors WHERE factor = '{P}'")
    assert (order, explained) == (None, None)
