"""The guide's reference pages agree with the code: no setting, command, option, route or schema is missing."""

import re

import click
import pytest

from config.settings import Settings
from docs import reference
from ingest.cli import COMMANDS, main


@pytest.fixture(scope="module")
def document():
    return reference.specification()


@pytest.fixture(scope="module")
def pages(document):
    return {"commands": reference.commands(), "settings": reference.settings(), "api": reference.api(document)}


def section(page: str, heading: str) -> str:
    """The lines beneath a heading, down to the next one."""
    (found,) = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", page, re.MULTILINE | re.DOTALL)
    return found


def test_every_setting_has_a_row_with_its_default_and_meaning(pages):
    rows = [line.strip("| ").split(" | ") for line in pages["settings"].splitlines() if line.startswith("| `")]
    rows = rows[: len(Settings.model_fields)]
    assert [row[0] for row in rows] == [f"`{name.upper()}`" for name in Settings.model_fields]
    for row, field in zip(rows, Settings.model_fields.values(), strict=True):
        assert row[1] == reference.shown_default(field)
        assert re.sub(r"\\(.)", r"\1", row[2]).startswith(field.description)


def test_settings_have_units_and_ranges(pages):
    rows = {line.split("`")[1]: line for line in pages["settings"].splitlines() if line.startswith("| `")}
    assert rows["DEFAULT_WAIT"].endswith("| 10.0 | how long a request waits for its outcome (seconds, 0 to 20) |")
    assert rows["RESIDUE_EXPIRY_DAYS"].endswith("(days, above 0 to 3,650) |")
    assert rows["MAX_BODY"].endswith("| 16777216 | largest request body (bytes) |")
    assert reference.UNITS.keys() <= Settings.model_fields.keys()


def walk(command: click.Command, path: str):
    yield command, path
    for name in COMMANDS if command is main else getattr(command, "commands", {}):
        yield from walk(command.get_command(click.Context(command), name), f"{path} {name}")


def test_every_command_has_a_section_with_each_of_its_options(pages):
    commands = list(walk(main, "ecm-coordinator"))
    assert len(commands) > 30
    for command, path in commands:
        text = section(pages["commands"], path)
        for parameter in command.params:
            if getattr(parameter, "hidden", False):
                continue
            if isinstance(parameter, click.Option):
                assert all(re.search(rf"(?<!\S)`?{option}\b", text) for option in parameter.opts), (path, parameter)
            else:
                assert parameter.make_metavar(click.Context(command)) in text


def test_a_command_that_lists_its_exit_codes_does_so_here(pages):
    assert "5  with --once" in section(pages["commands"], "ecm-coordinator agent work")


def test_every_route_has_a_section_with_its_parameters_and_answers(pages, document):
    routes = [
        (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method in reference.METHODS
    ]
    assert len(routes) > 50
    for method, path, operation in routes:
        text = section(pages["api"], f"{method.upper()} {path}")
        assert all(f"`{parameter['name']}`" in text for parameter in operation.get("parameters", []))
        # Each with its meaning, also where the document refers to an answer that many routes have.
        assert all(re.search(rf"\| {status} \| [^| ]", text) for status in operation["responses"])
    assert pages["api"].count("\n### ") == len(routes) + len(document["components"]["schemas"])


def test_every_schema_has_a_section_with_its_fields(pages, document):
    for name, schema in document["components"]["schemas"].items():
        text = section(pages["api"], name)
        assert all(f"`{field}`" in text for field in schema.get("properties", {}))


def test_links_between_schemas_lead_to_a_section(pages, document):
    linked = set(re.findall(r"\]\(#(\w+)\)", pages["api"]))
    assert linked <= {name.lower() for name in document["components"]["schemas"]}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b `c|d` <e>", r"a\|b `c\|d` \<e\>"),
        ("2^64 *is* `2^64`", r"2\^64 \*is\* `2^64`"),
        ("one ` alone", r"one \` alone"),
    ],
)
def test_markdown_shows_a_text_as_it_is(text, shown):
    assert reference._escape(text) == shown
