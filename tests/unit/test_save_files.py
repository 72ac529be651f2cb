"""GMP-ECM's save files: those that the program itself writes are read, damaged ones are refused by their line."""

import io
import random
import re
import subprocess

import gmpy2
import pytest

from agent.gmp_ecm import find_ecm
from coordinator.residues import save_files
from coordinator.residues.save_files import CHECKSUM_MODULUS, SaveFileError, read_save_file

NUMBER = gmpy2.mpz(2) ** 499 - 1
WRITTEN = "(2^499-1)/20959"


def checked(content, b1=None, max_digits=1000):
    kept = []
    file = content if hasattr(content, "readline") else io.BytesIO(content)
    found = read_save_file(file, max_digits=max_digits, b1=b1, keep=kept.append)
    if not hasattr(content, "readline"):
        assert b"".join(kept) == content
    return found


@pytest.fixture(scope="module", params=[0, 1, 2, 3])
def saved(request, tmp_path_factory):
    """(parametrization, what ecm -save wrote of three curves)."""
    file = tmp_path_factory.mktemp("save") / "curves.save"
    run = [find_ecm(), "-param", str(request.param), "-c", "3", "-save", str(file), "500", "0"]
    subprocess.run(run, input=WRITTEN, text=True, capture_output=True, check=False)
    return request.param, file.read_bytes()


@pytest.fixture(scope="module")
def stage1_file(saved):
    return saved[1]


def test_save_files_of_gmp_ecm_are_read(saved):
    parametrization, content = saved
    found = checked(content)
    assert (found.number, found.b1, found.parametrization, found.curves) == (NUMBER // 20959, 500, parametrization, 3)
    assert found.size == len(content)


@pytest.mark.parametrize("way", ["decimal", "hexadecimal", "several lines", "windows", "comments"])
def test_other_spellings_of_a_save_file_are_read(saved, way):
    parametrization, content = saved
    text = content.decode()
    if way == "decimal":
        text = text.replace(WRITTEN, str(NUMBER // 20959))
    elif way == "hexadecimal":
        text = text.replace(WRITTEN, hex(NUMBER // 20959))
    elif way == "several lines":
        text = text.replace("; ", "\n").replace(";", "\n")
    elif way == "windows":
        text = text.replace("\n", "\r\n")
    else:
        text = "# mine\n\n" + text.replace("\n", "\n\n")
    found = checked(text.encode())
    assert (found.number, found.parametrization, found.curves) == (NUMBER // 20959, parametrization, 3)


def checksum(b1, sigma, number, x, param=None):
    parts = [b1, sigma, number, x] + ([] if param is None else [param + 1])
    return gmpy2.f_mod(
        gmpy2.mpz(1) * parts[0] * parts[1] * parts[2] * parts[3] * (parts[4:] or [1])[0], CHECKSUM_MODULUS
    )


def test_a_file_without_param_has_parametrization_0():
    x = random.getrandbits(400)
    line = f"METHOD=ECM; SIGMA=17; B1=1e3; N={NUMBER}; X={hex(x)}; CHECKSUM={checksum(1000, 17, NUMBER, x)};\n"
    found = checked(line.encode())
    assert (found.b1, found.parametrization, found.curves) == (1000, 0, 1)


def test_prime95_files_have_no_b1_and_no_checksum():
    lines = f"N={NUMBER}; QX=0x1234; SIGMA=17\nN={NUMBER}; QX=0x1235; SIGMA=18\n".encode()
    assert checked(lines, b1=50_000).curves == 2
    assert checked(lines, b1=50_000).b1 == 50_000
    with pytest.raises(SaveFileError, match=r"Line 1: B1 is missing.*\?b1="):
        checked(lines)


def test_every_flipped_digit_is_found(stage1_file):
    text = stage1_file.decode()
    for tag in ("SIGMA", "B1", "CHECKSUM", "X"):
        match = list(re.finditer(rf"\b{tag}=(0x)?([0-9a-f]+)", text))[1]
        for place in range(*match.span(2)):
            other = "1" if text[place] != "1" else "2"
            damaged = text[:place] + other + text[place + 1 :]
            with pytest.raises(SaveFileError, match="Line 2"):
                checked(damaged.encode())


def test_every_truncation_within_a_line_is_found(stage1_file):
    whole = len(stage1_file.rstrip().rsplit(b"CHECKSUM", 1)[0])  # what follows the checksum is no number
    for end in range(len(stage1_file) - len(stage1_file.splitlines()[-1]), whole, 7):
        try:
            curves, message = checked(stage1_file[:end]).curves, None
        except SaveFileError as error:
            curves, message = None, str(error)
        assert curves == 2 or "Line 3" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[0], lines[1].replace("B1=500", "B1=501")], "Line 2"),
        (lambda lines: [lines[0], lines[0]], r"Line 2: this curve \(SIGMA=\d+\) is on line 1 already"),
        (lambda lines: [lines[0].replace("METHOD=ECM", "METHOD=P-1")], "only curves"),
        (lambda lines: [lines[0].replace("METHOD=ECM; ", "")], "Line 1: METHOD is missing"),
        (lambda lines: [re.sub("X=0x[0-9a-f]+; ", "", lines[0], count=1)], "Line 1: X is missing"),
        (lambda lines: [re.sub("CHECKSUM=[0-9]+; ", "", lines[0])], "Line 1: CHECKSUM is missing"),
        (lambda lines: [re.sub("PARAM=[0-9]", "PARAM=4", lines[0])], "PARAM is 4"),
        (lambda lines: [lines[0].replace(WRITTEN, "2^^3")], "N cannot be read"),
        (lambda lines: [lines[0].replace(WRITTEN, "10^5000")], "N cannot be read"),
        (lambda lines: [lines[0].replace(WRITTEN, "0x" + "f" * 5000)], "N should be"),
        (lambda lines: [lines[0].replace("B1=500", "B1=0.5")], "B1 is '0.5'"),
        (lambda lines: [lines[0].replace("B1=500", "B1=1e99")], "B1 is '1e99'"),
        (lambda lines: ["\n", "# nothing\n"], "no curve"),
        (lambda lines: ["hello\n"], "Line 1: 'hello' is no TAG=value"),
    ],
)
def test_an_invalid_save_file_is_refused_with_its_line(stage1_file, change, message):
    lines = stage1_file.decode().splitlines(keepends=True)
    with pytest.raises(SaveFileError, match=message):
        checked("".join(change(lines)).encode())


def test_files_of_different_numbers_or_parametrizations_are_refused(stage1_file):
    for number, sigma, param in ((NUMBER, 99, 1), (NUMBER // 20959, 98, 2)):
        x = 12345
        line = f"METHOD=ECM; PARAM={param}; SIGMA={sigma}; B1=500; N={number}; X={hex(x)};"
        line += f" CHECKSUM={checksum(500, sigma, number, x, param)};\n"
        first = f"METHOD=ECM; PARAM=1; SIGMA=97; B1=500; N={NUMBER // 20959}; X={hex(x)};"
        first += f" CHECKSUM={checksum(500, 97, NUMBER // 20959, x, 1)};\n"
        with pytest.raises(SaveFileError, match=r"Line 2: (N|PARAM) is"):
            checked((first + line).encode())


class Endless:
    """A file of so many bytes without a line's end, that nobody could keep in memory unnoticed."""

    def __init__(self, size):
        self.left, self.read_bytes = size, 0

    def readline(self, limit):
        piece = min(limit, self.left)
        self.left -= piece
        self.read_bytes += piece
        return b"0" * piece


def test_binary_empty_and_endless_files_are_refused():
    with pytest.raises(SaveFileError, match="no curve"):
        checked(b"")
    with pytest.raises(SaveFileError, match="Line 1 is no text"):
        checked(bytes(range(128, 256)))
    endless = Endless(60_000_000)
    with pytest.raises(SaveFileError, match="Line 1 is longer than"):
        checked(endless)
    assert endless.read_bytes < 20_000


def line_of(written, number, sigma):
    """A line with a right checksum, of no real curve."""
    checksum = 11_000
    for part in (sigma, number, 5, 2):
        checksum = checksum * int(part % CHECKSUM_MODULUS) % CHECKSUM_MODULUS
    return f"METHOD=ECM; PARAM=1; SIGMA={sigma}; B1=11000; N={written}; X=0x5; CHECKSUM={checksum};\n".encode()


EXPRESSION = "+".join(f"3^{exponent}" for exponent in range(1990, 1970, -1))
VALUE = sum(gmpy2.mpz(3) ** exponent for exponent in range(1971, 1991))


def test_the_expression_of_n_is_evaluated_once_whatever_the_other_lines_say(monkeypatch):
    """40 lines with N alternately E and E+0 took 9 s."""
    evaluated = []
    evaluate = save_files.evaluate_number
    monkeypatch.setattr(save_files, "evaluate_number", lambda *given: evaluated.append(given[0]) or evaluate(*given))
    for other in (EXPRESSION + "+0", f"({EXPRESSION})", "3^1990"):
        lines = [line_of((EXPRESSION, other)[sigma % 2], VALUE, sigma) for sigma in range(10, 50)]
        with pytest.raises(SaveFileError, match=r"Line 2: N is .* in the first line"):
            checked(b"".join(lines))
    assert evaluated == [EXPRESSION] * 3


@pytest.mark.parametrize("other", [EXPRESSION, str(VALUE), hex(VALUE)])
def test_other_lines_repeat_n_or_have_it_in_decimal(other):
    lines = [line_of((EXPRESSION, other)[sigma % 2], VALUE, sigma) for sigma in range(10, 50)]
    found = checked(b"".join(lines))
    assert (found.number, found.curves) == (VALUE, 40)


def test_an_expression_of_n_has_the_length_of_expressions_everywhere():
    with pytest.raises(SaveFileError, match="too long for an expression"):
        checked(line_of("1+" * 2500 + "6", gmpy2.mpz(2506), 10))
    with pytest.raises(SaveFileError, match="takes too long to compute"):
        checked(line_of("+".join(["3^90000"] * 400), 400 * gmpy2.mpz(3) ** 90000, 10), max_digits=50_000)


def test_a_file_for_an_unknown_number_is_not_read_to_its_end():
    class UnknownError(Exception):
        pass

    def check_number(number):
        assert number == VALUE
        raise UnknownError

    kept = []
    lines = [line_of(EXPRESSION, VALUE, sigma) for sigma in range(10, 50)]
    with pytest.raises(UnknownError):
        read_save_file(io.BytesIO(b"".join(lines)), max_digits=1000, keep=kept.append, check_number=check_number)
    assert len(kept) == 2
