"""Group orders against GMP-ECM: a find of the program is explained, and a find beyond its bounds is not."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from gmpy2 import mpz

from agent.gmp_ecm import find_ecm, parse_output
from coordinator.composites import group_orders
from coordinator.numbers import elliptic
from coordinator.numbers.arithmetic import factorize

P = mpz(1000000000100011)
COFACTOR = mpz(2) ** 521 - 1


def find_sigma(parametrization, b1, *b2):
    """Return the sigma of a curve with which GMP-ECM finds P."""
    program = [find_ecm(), "-one", "-c", "500", "-param", str(parametrization), str(b1), *map(str, b2)]
    process = subprocess.run(map(str, program), input=str(P * COFACTOR), capture_output=True, text=True, check=False)
    (factor,) = parse_output(process.stdout.splitlines()).factors
    assert factor.value == str(P)
    return factor.sigma.partition(":")[2]


def claim(sigma, parametrization, b1, b2=None, factor=P):
    return SimpleNamespace(factor=str(factor), sigma=sigma, parametrization=parametrization, b1=b1, b2=b2)


@pytest.mark.parametrize("parametrization", [0, 1, 2, 3])
def test_what_gmp_ecm_finds_is_explained_by_its_order_and_not_by_smaller_bounds(parametrization):
    sigma = find_sigma(parametrization, 2000)
    finding = group_orders.examine(claim(sigma, parametrization, 2000))
    assert finding.is_explained, finding
    order = mpz(finding.group_order)
    assert (order - P - 1) ** 2 <= 4 * P
    product = mpz(1)
    for part in finding.group_order_factors.split(" * "):
        prime, _, count = part.partition("^")
        product *= mpz(prime) ** int(count or 1)
    assert product == order
    curve = elliptic.curve(P, int(sigma), parametrization)
    assert elliptic.vanishes(curve, order)
    large = max(elliptic.point_order(curve, factorize(order)))
    explained, remark = group_orders.explains({large: 1}, 100, 0)
    assert not explained
    assert str(large) in remark


def test_a_sigma_that_found_something_else_is_not_explained():
    finding = group_orders.examine(claim("123456", 1, 200))
    assert finding.is_explained is False
    assert finding.order_remark.startswith("not explained: B1 = 200 leaves")


@pytest.mark.parametrize(
    ("order", "b1", "b2", "explained"),
    [
        ({2: 30, 3: 20, 101: 1}, 200, 0, True),  # powers of 2 and 3 do not count
        ({5: 4}, 200, 0, False),
        ({5: 4}, 200, None, True),  # 5^3 in stage 1 and one more 5 in stage 2
        ({5: 6}, 200, None, False),
        ({211: 1}, 200, 0, False),
        ({211: 1}, 200, 1000, True),
        ({211: 1, 223: 1}, 200, 1000, False),
        ({211: 2}, 200, 100_000, False),
        ({10**9 + 7: 1}, 200, None, False),
    ],
)
def test_prime_powers_within_b1_but_for_one_prime_within_b2(order, b1, b2, explained):
    is_explained, remark = group_orders.explains({mpz(prime): count for prime, count in order.items()}, b1, b2)
    assert is_explained is explained
    assert (remark is None) is explained


def test_a_prime_beyond_b2_can_be_met_by_the_extension():
    explained, remark = group_orders.explains({mpz(21516301): 1}, 50_000, None)
    assert explained
    assert "extension" in remark
    assert not group_orders.explains({mpz(10**12 + 39): 1}, 50_000, None)[0]


@pytest.mark.parametrize(("sigma", "parametrization"), [("0", 0), ("0", 2), ("0", 1), (str(P), 3)])
def test_a_sigma_that_is_no_curve_is_a_remark(sigma, parametrization):
    finding = group_orders.examine(claim(sigma, parametrization, 2000))
    assert (finding.group_order, finding.is_explained) == (None, None)
    assert "modulo this factor" in finding.order_remark


def test_a_factor_that_is_too_large_is_a_remark():
    finding = group_orders.examine(claim("7", 0, 2000, factor=10**90 + 289))
    assert finding.is_explained is None
    assert "70 digits" in finding.order_remark


def test_without_the_extra_it_is_a_remark(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    real = subprocess.run
    block = "import sys, runpy; sys.modules['cypari'] = None; sys.argv = ['', *sys.argv[1:]]; "
    block += "runpy.run_module('coordinator.numbers.elliptic', run_name='__main__')"

    def without_cypari(program, **options):
        assert program[:3] == [sys.executable, "-m", "coordinator.numbers.elliptic"]
        return real([sys.executable, "-c", block, *program[3:]], **options)

    monkeypatch.setattr(subprocess, "run", without_cypari)
    finding = group_orders.examine(claim("7", 0, 2000))
    assert finding == (None, None, None, "not computed: the server lacks the extra `analysis`")


def test_the_order_from_pari_is_proved(monkeypatch):
    wrong = SimpleNamespace(returncode=0, stdout=f"{P + 2}\n", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: wrong)
    with pytest.raises(ArithmeticError, match="is not the order"):
        elliptic.curve_order(elliptic.curve(P, 7, 0))


def test_the_other_process_finds_the_coordinator_and_the_standard_library_s_modules():
    script = "import coordinator, fractions, numbers; print(coordinator.__file__, numbers.Number.__module__)"
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=elliptic.PROGRAM_DIRECTORY, capture_output=True, text=True, check=True
    )
    package, module = process.stdout.split()
    assert (package, module) == (str(elliptic.PROGRAM_DIRECTORY / "coordinator" / "__init__.py"), "numbers")
