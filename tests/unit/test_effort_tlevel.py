"""Curve strings and the t-level calculator."""

import json
import xml.etree.ElementTree as ET

import pytest
from click.testing import CliRunner

from coordinator import effort
from ingest.commands.tlevel import tlevel


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("5208@11e6", [(11_000_000, -1, 1, 5208)]),
        ("5208@11e6;261@5e4,p=3", [(11_000_000, -1, 1, 5208), (50_000, -1, 3, 261)]),
        ("5208/8192@11e6", [(11_000_000, -1, 1, 5208), (11_000_000, 0, 1, 2984)]),
        ("5208@11e6,35133391030,1", [(11_000_000, 35_133_391_030, 1, 5208)]),
        ("5208@11e6,35e9,p=3", [(11_000_000, 35_000_000_000, 3, 5208)]),
        ("5208@B1=11e6,B2=35e9,param=0", [(11_000_000, 35_000_000_000, 0, 5208)]),
        ("10/20@1e6,1e9,p=0", [(1_000_000, 10**9, 0, 10), (1_000_000, 0, 0, 10)]),
        ("1e3@2.5E5,0", [(250_000, 0, 1, 1000)]),
        ("7@11e6,-1", [(11_000_000, -1, 1, 7)]),
        (" 7 @ 11e6 , p = 2 ;\n; 8@5e4\r\n", [(11_000_000, -1, 2, 7), (50_000, -1, 1, 8)]),
    ],
)
def test_curve_strings(text, runs):
    assert effort.parse_curves(text) == runs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no curves given"),
        (" ; ", "no curves given"),
        ("5208", "cannot read '5208'"),
        ("5208@11e6;x", "cannot read 'x'"),
        ("-5@11e6", "cannot read"),
        ("5@11e6,p=4", "'5@11e6,p=4': the parametrization is 4"),
        ("5@11", "B1 is 11: it must be from 100"),
        ("5@1e15", "B1 is 1,000,000,000,000,000"),
        ("5@1e6,1e22", "B2 is 10,000,000,000,000,000,000,000"),
        ("5@1e99", "B1 is 1"),
        ("5e10@1e6", "the number of curves is 50,000,000,000"),
        ("8192/5208@11e6", "the number of curves is 5,208: it must be from 8,192"),
        ("1.5@11e6", "1.5 is not a whole number"),
        ("5@٣e6", "cannot read"),  # Arabic-Indic digits are digits to Python, not to us
    ],
)
def test_curve_strings_that_cannot_be_read(text, words):
    with pytest.raises(ValueError, match=words):
        effort.parse_curves(text)


def _run(*arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(tlevel, arguments)
    assert result.exit_code == exit_code, result.output
    return result.output


def test_the_calculators_text_output():
    lines = _run("5208@11e6", "--target", "50").splitlines()
    assert lines[0] == "t45.000"
    assert any(line.split()[:2] == ["45", "36.784"] for line in lines)
    assert any("curves at B1 = 43,000,000" in line for line in lines)
    assert "t40 is reached." in _run("5208@11e6", "--target", "40")


def test_the_next_multiple_of_five_is_the_usual_target():
    assert "Still to run for t50" in _run("5208@11e6")
    assert "Still to run for t10" in _run("0@11e6")


def test_the_calculators_json_output():
    document = json.loads(_run("5208/8192@11e6", "--target", "50", "--json"))
    assert document["t_level"] == pytest.approx(45.08, abs=0.02)
    assert document["missed"]["60"] == pytest.approx(0.998, abs=0.001)
    assert len(document["missed"]) == 91
    assert document["runs"][1] == {"b1": 11_000_000, "b2": 0, "parametrization": 1, "curves": 2984}
    vector = effort.effort_of(effort.parse_curves("5208/8192@11e6"))
    for run in document["remaining"]:
        more = effort.add_curves(vector, run["curves"], run["b1"], run["b2"], run["parametrization"])
        assert effort.t_level(more) == pytest.approx(50, abs=0.01)
        assert effort.t_level(more) >= 50


def test_the_curve_as_svg(tmp_path):
    _run("5208@11e6 ; 1@5e4", "--plot", str(tmp_path / "effort.svg"))
    root = ET.parse(tmp_path / "effort.svg").getroot()
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"1/e", "t45.00", "target t50", "5208@11e6 ; 1@5e4: t45.00"} <= set(words)
    curve = max(root.iter("{http://www.w3.org/2000/svg}polyline"), key=lambda line: len(line.get("points")))
    assert len(curve.get("points").split()) == 91


def test_the_curve_as_png(tmp_path):
    image = pytest.importorskip("PIL.Image")
    _run("5208@11e6", "--plot", str(tmp_path / "effort.PNG"))
    with image.open(tmp_path / "effort.PNG") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(1_000_000)) > 50


@pytest.mark.parametrize(
    ("arguments", "words", "exit_code"),
    [
        (["nonsense"], "cannot read 'nonsense'", 2),
        (["5@11e6", "--target", "9"], "--target", 2),
        (["5@11e6", "--plot", "effort.gif"], "must end in .svg or .png", 2),
        (["5@11e6", "--plot", "/no/such/folder/effort.svg"], "cannot write", 1),
    ],
)
def test_a_mistake_gives_one_sentence(arguments, words, exit_code):
    output = _run(*arguments, exit_code=exit_code)
    assert words in output
    assert "Traceback" not in output
