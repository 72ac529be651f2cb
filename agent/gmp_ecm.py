"""GMP-ECM: where its program is, its command lines, and the parser of its output.

The output is parsed line by line while it is written, so that the completed curves of a run that dies are known. These
rules come from the README of GMP-ECM 7.0.7 and from its output:

- `Using B1=..., B2=..., ..., sigma=p:s` begins a curve. Its B2 is the effective one, a little above the requested one.
- `Step 2 took` completes a curve, as `Step 1 took` does without stage 2 (B2 <= B1), and as a factor does.
- `Factor found in step k: f` names a factor. `Found input number N` after it means that f is the number itself.
- Without `-one` the remaining curves run on the cofactor; each factor belongs to the curve before it.
- Small factors (of an even number) can be found before the first curve begins: such a factor has no sigma.
"""

import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

WHEEL = "passagemath-libecm"
ERROR_BIT = 1  # of the exit status; the output tells what the other bits do (2 factor, 4 prime, 8 cofactor prime or 1)

BANNER = re.compile(r"GMP-ECM (?P<version>\d+\.\S+)")
CURVE = re.compile(r"Using B1=(?P<b1>\d+)(?:-\d+)?, B2=(?:\d+-)?(?P<b2>\d+),.*?\bsigma=(?P<sigma>(?:[0-3]:)?\d+)")
STEP = re.compile(r"Step (?P<step>[12]) took")
FACTOR = re.compile(r"\*{10} Factor found in step (?P<step>\d): (?P<factor>\d+)")
KIND = re.compile(r"Found (?P<kind>prime|probable prime|composite) factor of\s+\d+ digits: (?P<factor>\d+)")
COFACTOR = re.compile(r"(?P<kind>Prime|Probable prime|Composite) cofactor ")


class EcmMissingError(Exception):
    """There is no GMP-ECM program; the message says how to get one."""


class EcmFailedError(Exception):
    """GMP-ECM ended with an error; the message has the end of its output."""


@dataclass
class EcmFactor:
    """A factor as GMP-ECM printed it, with the curve ("parametrization:sigma") that found it."""

    value: str
    sigma: str | None
    step: int
    kind: str = "unknown"  # prime, probable prime, composite; unknown until GMP-ECM prints it


@dataclass
class EcmOutput:
    """The parsed output of a run, up to the last line that was passed to feed()."""

    version: str | None = None
    curves_completed: int = 0
    b1: int | None = None
    b2: int | None = None  # the effective one; 0 where only stage 1 is run
    sigma: str | None = None  # of the first curve, as "parametrization:sigma"
    last_sigma: str | None = None
    factors: list[EcmFactor] = field(default_factory=list)
    found_input_number: bool = False
    cofactor: str | None = None  # of the last factor: prime, probable prime or composite
    _open: bool = field(default=False, repr=False)

    def feed(self, line: str) -> bool:
        """Parse one line; return whether it completed a curve."""
        if match := STEP.match(line):
            last_step = "2" if self.b2 else "1"
            return match["step"] == last_step and self._complete()
        if match := CURVE.match(line):
            self.b1, b2 = int(match["b1"]), int(match["b2"])
            self.b2 = b2 if b2 > self.b1 else 0
            # GMP-ECM 6 had only Suyama's curves, which are parametrization 0 today, and printed no prefix.
            self.last_sigma = match["sigma"] if ":" in match["sigma"] else f"0:{match['sigma']}"
            self.sigma = self.sigma or self.last_sigma
            self._open = True
        elif match := FACTOR.match(line):
            self.factors.append(EcmFactor(match["factor"], self.last_sigma, int(match["step"])))
            return self._complete()
        elif match := KIND.match(line):
            if self.factors and self.factors[-1].value == match["factor"]:
                self.factors[-1].kind = match["kind"]
        elif line.startswith("Found input number N") and self.factors:
            self.factors.pop()
            self.found_input_number = True
        elif match := COFACTOR.match(line):
            self.cofactor = match["kind"].lower()
        elif line.startswith("Run "):
            # A factor that is found before the next curve begins must not get the sigma of the last one.
            self.last_sigma = None
            self._open = False
        elif match := BANNER.match(line):
            self.version = match["version"]
        return False

    def _complete(self) -> bool:
        done, self._open = self._open, False
        self.curves_completed += done
        return done

    @property
    def parametrization(self) -> int | None:
        """The effective parametrization: for 2^n-1 and 2^n+1 GMP-ECM chooses 0 unless one is requested."""
        return int(self.sigma[0]) if self.sigma else None


def parse_output(lines: Iterable[str]) -> EcmOutput:
    """Parse the whole output of a run."""
    output = EcmOutput()
    for line in lines:
        output.feed(line)
    return output


def find_ecm(given: Path | None = None) -> Path:
    """Return the GMP-ECM program: the given one, else `ecm` on the PATH, else the one in the passagemath-libecm wheel.

    Raises EcmMissingError, with a message that says how to install it.
    """
    if given is not None:
        if not (given.is_file() and os.access(given, os.X_OK)):
            raise EcmMissingError(f"{given} is not a program that can be run")
        return given
    if on_path := shutil.which("ecm"):
        return Path(on_path)
    try:
        in_wheel = Path(str(metadata.distribution(WHEEL).locate_file("sage_wheels/bin/ecm")))
    except metadata.PackageNotFoundError:
        in_wheel = None
    if in_wheel and os.access(in_wheel, os.X_OK):
        return in_wheel
    raise EcmMissingError(
        "there is no `ecm` on the PATH: install GMP-ECM (Debian and Ubuntu: gmp-ecm), run"
        " `pip install ecm-coordinator[agent]`,"
        " or name the program with --ecm"
    )


def curves_command(
    ecm: Path,
    *,
    b1: int,
    b2: int | None,
    curves: int,
    parametrization: int | None = None,
    sigma: str | None = None,
    save: Path | None = None,
) -> list[str]:
    """Return the command line of a run that ends at its first factor and reads the number from standard input.

    `b2` None leaves the default to GMP-ECM; 0 runs stage 1 only. GMP-ECM appends each curve's residue to `save`, which
    must not exist yet. Raises ValueError for a `sigma` with several curves: GMP-ECM would run the same curve each time.
    """
    if sigma is not None and curves != 1:
        raise ValueError(f"sigma {sigma} is one curve, but {curves} curves are requested: omit sigma, or run 1 curve")
    options = ["-one", "-c", str(curves)]
    if parametrization is not None:
        options += ["-param", str(parametrization)]
    if sigma is not None:
        options += ["-sigma", sigma]
    if save is not None:
        options += ["-save", str(save)]
    return [str(ecm), *options, *_bounds(b1, b2)]


def resume_command(ecm: Path, *, saved: Path, b1: int, b2: int | None) -> list[str]:
    """Return the command line of stage 2 on the curves of a save file; it ends at the first factor."""
    return [str(ecm), "-one", "-resume", str(saved), *_bounds(b1, b2)]


def _bounds(b1: int, b2: int | None) -> list[str]:
    return [str(b1)] if b2 is None else [str(b1), str(b2)]
