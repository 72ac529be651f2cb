"""The README is true: its table of settings, and the result and answers that it shows."""

import json
import re
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from config.settings import Settings, default_home
from models.wire.reading import CompositeStats
from models.wire.results import ResultAnswer, SubmitResult

README = (Path(__file__).parents[2] / "README.md").read_text()
ANSWERS = re.findall(r"```json\n(.*?)```", README, re.DOTALL)


def table_row(name: str, field: FieldInfo) -> str:
    """The line of the README's table for a setting."""
    default = field.get_default(call_default_factory=True)
    if field.default_factory is default_home:
        shown = "the platform's data directory"
    elif hasattr(default, "get_secret_value"):
        shown = default.get_secret_value()
    else:
        shown = str(default).lower() if isinstance(default, bool) else "" if default is None else f"{default}"
    return f"| `{name.upper()}` | {shown or '(unset)'} | {field.description} |"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_in_the_table_with_its_default(name):
    assert table_row(name, Settings.model_fields[name]) in README.splitlines()


def test_the_table_names_no_setting_that_is_gone():
    named = re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)
    assert named == [name.upper() for name in Settings.model_fields]


def test_the_result_that_curl_sends_is_one_that_is_taken():
    (body,) = re.findall(r"curl \S+/submit_result .*? -d '\n(.*?)'\n```", README, re.DOTALL)
    result = SubmitResult.model_validate_json(body)
    (found,) = result.claims
    assert (2**128 + 1) % int(found.factor) == 0
    assert set(json.loads(body)) <= set(SubmitResult.model_fields), "an unknown field would be ignored silently"


def test_the_answers_have_the_shape_of_real_ones():
    result, stats = map(json.loads, ANSWERS)
    assert set(result) == {name for name, field in ResultAnswer.model_fields.items() if field.is_required()}
    ResultAnswer.model_validate(result)
    assert set(stats) == set(CompositeStats.model_fields)
    assert CompositeStats.model_validate(stats).status == "fully_factored"
    assert result["current_t_level"] == stats["current_t_level"]
