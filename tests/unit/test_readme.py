"""The README is true: its table of settings, and the result and answers that it shows."""

import json
import re
from pathlib import Path

from config.settings import Settings
from docs.reference import shown_default
from models.wire.reading import CompositeStats
from models.wire.results import ResultAnswer, SubmitResult

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ANSWERS = re.findall(r"```json\n(.*?)```", README, re.DOTALL)


def table_row(name: str) -> str:
    """The line of the README's table for a setting."""
    field = Settings.model_fields[name.lower()]
    return f"| `{name}` | {shown_default(field)} | {field.description} |"


def test_every_row_of_the_table_is_a_setting_with_its_default():
    rows = [line for line in README.splitlines() if line.startswith("| `")]
    assert len(rows) > 10
    assert rows == [table_row(re.match(r"\| `(\w+)`", row)[1]) for row in rows]


def test_what_everybody_needs_is_in_the_table():
    assert {"DATABASE_URL", "REDIS_URL", "ADMIN_API_KEY", "HOST", "PORT"} <= set(
        re.findall(r"^\| `(\w+)` \|", README, re.M)
    )


def test_every_document_that_it_links_to_exists():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []


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
