"""The parser, on what GMP-ECM 7.0.7 really printed (tests/data/gmp_ecm_output), and finding the program."""

import os
import subprocess
from pathlib import Path

import pytest

from agent.gmp_ecm import EcmMissingError, curves_command, find_ecm, parse_output

CAPTURED = Path(__file__).parent.parent / "data" / "gmp_ecm_output"


def captured(name):
    return (CAPTURED / f"{name}.txt").read_text().splitlines()


@pytest.mark.parametrize(
    ("name", "curves", "b1", "b2", "sigma"),
    [
        ("param0", 1, 2000, 147396, "0:100"),
        ("param1", 1, 2000, 147396, "1:101"),
        ("param2", 1, 2000, 147396, "2:102"),
        ("param3_curves", 3, 200, 5286, "3:2936756308"),
        ("stage1_only", 2, 2000, 0, None),
        ("b2_below_b1", 2, 2000, 0, None),
        ("b2_interval", 1, 300, 5000, None),
    ],
)
def test_runs_without_a_factor(name, curves, b1, b2, sigma):
    output = parse_output(captured(name))
    assert (output.curves_completed, output.b1, output.b2, output.version) == (curves, b1, b2, "7.0.7")
    assert output.factors == []
    assert not output.found_input_number
    if sigma:
        assert output.sigma == sigma
        assert output.parametrization == int(sigma[0])


def test_gmp_ecm_chooses_parametrization_0_for_powers_of_two():
    output = parse_output(captured("default_for_power_of_two"))
    assert output.parametrization == 0
    assert output.curves_completed == 3


def found(name):
    output = parse_output(captured(name))
    return output, [(factor.value, factor.kind, factor.step) for factor in output.factors]


def test_a_factor_in_step_1_completes_its_curve():
    output, factors = found("step1_prime_cofactor")
    assert factors == [("193707721", "prime", 1)]
    assert output.curves_completed == 1
    assert output.cofactor == "prime"
    assert output.factors[0].sigma == output.sigma


def test_a_factor_in_step_2_counts_its_curve_once():
    output, factors = found("step2_composite_cofactor")
    assert factors == [("193707721", "prime", 2)]
    assert output.curves_completed == 1
    assert output.cofactor == "composite"
    assert output.factors[0].sigma == "1:426840277"


def test_several_factors_each_with_the_sigma_of_its_own_curve():
    output, factors = found("several_factors")
    sigmas = [line.rsplit("=", 1)[1] for line in captured("several_factors") if line.startswith("Using")]
    assert len(factors) >= 2
    assert [factor.sigma for factor in output.factors] == sigmas[: len(factors)]
    assert output.curves_completed == len(sigmas)


@pytest.mark.parametrize(
    ("name", "factor"), [("composite_factor", "193708302123163"), ("large_cofactor", "25463487006647624079")]
)
def test_a_composite_factor(name, factor):
    output, factors = found(name)
    assert factors == [(factor, "composite", 1)]
    assert output.cofactor == "composite"


def test_found_input_number_is_no_factor():
    output, factors = found("input_number")
    assert factors == [("1000006000009", "composite", 1)]  # of its first curve; the second found what was left of N
    assert output.found_input_number
    assert output.curves_completed == 2


def test_a_factor_before_any_curve_has_no_sigma_and_counts_no_curve():
    output, factors = found("before_any_curve")
    assert [value for value, _, _ in factors] == ["2", "2"]
    assert [factor.sigma for factor in output.factors] == [None, None]
    assert output.found_input_number
    assert output.curves_completed == 1  # the one that then ran on 25


def test_a_hexadecimal_number():
    output, factors = found("hexadecimal")
    assert factors == [("52207", "composite", 1)]
    assert output.sigma == "1:5"


def test_verbose_output():
    output, factors = found("verbose")
    assert factors == [("761838257287", "prime", 2)]
    assert output.curves_completed == 2


def test_an_invalid_number_did_nothing():
    output = parse_output(captured("invalid_number"))
    assert (output.version, output.curves_completed, output.sigma) == ("7.0.7", 0, None)


def test_gmp_ecm_6_prints_sigma_without_its_parametrization():
    output = parse_output(
        ["Using B1=2000, B2=147396, polynomial x^1, sigma=1234", "Step 1 took 1ms", "Step 2 took 2ms"]
    )
    assert (output.sigma, output.parametrization, output.curves_completed) == ("0:1234", 0, 1)


@pytest.mark.parametrize("name", sorted(path.stem for path in CAPTURED.glob("*.txt")))
def test_output_cut_short_never_counts_too_much(name):
    lines = captured(name)
    whole = parse_output(lines)
    counts = [parse_output(lines[:end]).curves_completed for end in range(len(lines) + 1)]
    assert counts == sorted(counts)
    assert counts[-1] == whole.curves_completed
    # Nothing counts before its step is through: up to the first "Step", no curve is complete.
    first_step = next((i for i, line in enumerate(lines) if line.startswith("Step")), len(lines))
    assert counts[first_step] == 0


def test_command_lines():
    ecm = Path("/x/ecm")
    assert curves_command(ecm, b1=50000, b2=None, curves=7) == ["/x/ecm", "-one", "-c", "7", "50000"]
    assert curves_command(ecm, b1=50000, b2=0, curves=7, parametrization=3)[-4:] == ["-param", "3", "50000", "0"]
    assert curves_command(ecm, b1=50000, b2=9, curves=1, sigma="1:7")[-4:] == ["-sigma", "1:7", "50000", "9"]


def test_a_sigma_is_one_curve():
    with pytest.raises(ValueError, match="sigma 1:7 is one curve, but 3 curves are requested"):
        curves_command(Path("ecm"), b1=50000, b2=None, curves=3, sigma="1:7")


def program(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_program_on_the_path_is_preferred(tmp_path, monkeypatch):
    on_path = program(tmp_path / "bin" / "ecm")
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert find_ecm() == on_path
    given = program(tmp_path / "own" / "ecm")
    assert find_ecm(given) == given


def test_the_wheel_s_program_without_one_on_the_path(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    ecm = find_ecm()
    assert ecm.parts[-3:] == ("sage_wheels", "bin", "ecm")
    assert os.access(ecm, os.X_OK)
    run = [ecm, "-param", "1", "-c", "2", "2000"]
    printed = subprocess.run(run, input="2^101-1\n", capture_output=True, text=True, check=False)
    output = parse_output(printed.stdout.splitlines())
    assert output.version
    assert output.curves_completed in (1, 2)


def test_a_missing_program_is_named_with_the_remedy(tmp_path, monkeypatch):
    with pytest.raises(EcmMissingError, match="not a program"):
        find_ecm(tmp_path / "ecm")
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("agent.gmp_ecm.WHEEL", "no-such-distribution")
    with pytest.raises(EcmMissingError, match="pip install"):
        find_ecm()
