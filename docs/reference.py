"""The reference pages of the guide: commands, settings and the HTTP API, written from the code that they describe."""

import json
import re
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from inspect import cleandoc
from typing import Any

import click
from pydantic.fields import FieldInfo

from config.settings import Settings, default_home
from ingest.app import create_app
from ingest.cli import main as ecm_coordinator

PHRASES = {str(status.value): status.phrase for status in HTTPStatus}
METHODS = ("get", "put", "post", "patch", "delete")
# Units that neither a setting's name nor its type tells.
UNITS = {
    "max_body": "bytes",
    "max_raw_output": "bytes",
    "max_residue": "bytes",
    "task_time_limit": "seconds",
    "analysis_time_limit": "seconds",
    "client_job_seconds": "seconds",
}
# Variables that are no fields of Settings: other programs read them, or processes before they have settings.
OTHER_VARIABLES = [
    ("`FLOWER_ADDRESS`", "127.0.0.1", "address Flower listens on; any other option of Flower is `FLOWER_...`, too"),
    ("`PROMETHEUS_MULTIPROC_DIR`", "(made by `up`)", "directory in which the processes of one machine add up metrics"),
    ("`WORKER_METRICS_PORT`", "(unset)", "port on which a worker serves its machine's metrics"),
    ("`WORKER_METRICS_ADDRESS`", "127.0.0.1", "address on which it does"),
    ("`ECM_SERVER`, `ECM_KEY`, `ECM_SPOOL`", "(unset)", "the agent's `--server`, `--key` and `--spool`"),
]
# Commands' help and usage lines are broken here.
WIDTH = 100


def pages() -> dict[str, str]:
    """Return the text of each reference page (Markdown) by its file's name."""
    return {"commands.md": commands(), "settings.md": settings(), "api.md": api(specification())}


# Commands -------------------------------------------------------------------------------------------------------------


def commands() -> str:
    """Return the page of all commands, each with its arguments and options."""
    parts = ["# Commands", "Every command prints its part of this page when it is called with `--help` (`-h`)."]
    for context in each_command(click.Context(ecm_coordinator, info_name="ecm-coordinator", terminal_width=WIDTH)):
        parts += _command(context)
    return "\n\n".join(parts) + "\n"


def each_command(context: click.Context) -> Iterator[click.Context]:
    """Yield the context of the command, and of every command beneath it, in the order of its help."""
    yield context
    command = context.command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None and not found.hidden:
                yield from each_command(click.Context(found, info_name=name, parent=context, terminal_width=WIDTH))


def _command(context: click.Context) -> Iterator[str]:
    depth = context.command_path.count(" ")
    yield f"{'#' * min(2 + depth, 4)} {context.command_path}"
    yield f"```text\n{context.command.get_usage(context).removeprefix('Usage: ')}\n```"
    yield from _help(context.command.help or "")
    options = [_option(context, option) for option in context.command.get_params(context)]
    rows = [option for option in options if option is not None]
    if rows:
        yield _table(("option", "meaning"), rows)
    yield from _help(context.command.epilog or "")


def _help(text: str) -> Iterator[str]:
    """Yield a help text's paragraphs; Click marks those whose lines must stay as they are by a backspace."""
    for paragraph in re.split(r"\n\s*\n", cleandoc(text)):
        if paragraph.startswith("\b"):
            yield f"```text\n{paragraph.lstrip(chr(8)).strip(chr(10))}\n```"
        elif paragraph:
            yield _escape(" ".join(paragraph.split()))


def _option(context: click.Context, option: click.Parameter) -> tuple[str, str] | None:
    """Return an option's names and what its help says; None for --help, and for arguments, which usage lines show."""
    record = option.get_help_record(context)
    if record is None or "--help" in option.opts or not (record[1] or isinstance(option, click.Option)):
        return None
    return _escape(f"`{record[0]}`"), _escape(record[1])


# Settings -------------------------------------------------------------------------------------------------------------


def settings() -> str:
    """Return the page of all settings: a variable's name, its default, what it means, its unit and its range."""
    rows = [_setting(name, field) for name, field in Settings.model_fields.items()]
    return "\n\n".join(
        [
            "# Settings",
            "Every process reads its settings from environment variables when it starts. A value of the wrong kind, or "
            "out of its range, stops the process with a message that names the variable; an empty one counts as unset.",
            _table(("variable", "default", "meaning (unit, range)"), rows),
            "`ecm-coordinator up` also takes some of them as options: see [Commands](commands.md).",
            "## Other variables",
            _table(("variable", "default", "meaning"), OTHER_VARIABLES),
        ]
    )


def _setting(name: str, field: FieldInfo) -> tuple[str, str, str]:
    values = ", ".join(part for part in (_unit(name, field), _range(field)) if part)
    meaning = _escape(field.description or "")
    return f"`{name.upper()}`", shown_default(field), f"{meaning} ({values})" if values else meaning


def shown_default(field: FieldInfo) -> str:
    """Return a setting's default as a person would write it."""
    if field.default_factory is default_home:
        return "the platform's data directory"
    default = field.get_default(call_default_factory=True)
    if hasattr(default, "get_secret_value"):
        default = default.get_secret_value()
    if isinstance(default, bool):
        return str(default).lower()
    return "(unset)" if default in (None, "") else str(default)


def _unit(name: str, field: FieldInfo) -> str:
    for unit in ("days", "minutes"):
        if name.endswith(f"_{unit}"):
            return unit
    # What is a fraction of something in Settings is a time.
    return UNITS.get(name, "seconds" if field.annotation is float else "")


def _range(field: FieldInfo) -> str:
    """Return the smallest and the largest value that a setting may have, where it has such."""
    bounds = {
        name: getattr(rule, name) for rule in field.metadata for name in ("ge", "gt", "le") if hasattr(rule, name)
    }
    least = f"above {bounds['gt']}" if "gt" in bounds else f"{bounds['ge']:,}" if "ge" in bounds else ""
    if "le" in bounds:
        return f"{least} to {bounds['le']:,}"
    return f"{least} or more" if "ge" in bounds else least


# The HTTP API ---------------------------------------------------------------------------------------------------------


def specification() -> dict[str, Any]:
    """Return the document that a web process serves at /openapi.json; no server is asked for it."""
    nowhere = Settings(database_url="postgresql://ecm@127.0.0.1:1/ecm", redis_url="redis://127.0.0.1:1/0")
    app = create_app(nowhere)
    document: dict[str, Any] = json.loads(app.test_client().get("/openapi.json").get_data())
    return document


def api(document: dict[str, Any]) -> str:
    """Return the page of all routes, by tag, and of the schemas that they name."""
    parts = [
        "# HTTP API",
        "This page lists the routes of a coordinator, as its specification (`/openapi.json`) has them; `/docs` shows "
        "the same specification and can send requests. Bodies are JSON unless a route says otherwise.",
    ]
    routes = [
        (operation.get("tags", ["Other"])[0], f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method in METHODS
    ]
    shared_answers = document.get("components", {}).get("responses", {})
    descriptions = {tag["name"]: tag.get("description", "") for tag in document.get("tags", [])}
    for tag in dict.fromkeys([*descriptions, *(tag for tag, _, _ in routes)]):
        parts.append(f"## {tag}")
        parts.append(_escape(descriptions.get(tag, "")))
        for _, name, operation in (route for route in routes if route[0] == tag):
            parts += _operation(name, operation, shared_answers)
    parts.append("## Schemas")
    for name, schema in sorted(document.get("components", {}).get("schemas", {}).items()):
        parts += _schema(name, schema)
    return "\n\n".join(part for part in parts if part) + "\n"


def _operation(name: str, operation: dict[str, Any], shared_answers: dict[str, Any]) -> Iterator[str]:
    yield f"### {name}"
    texts = [operation.get("summary"), operation.get("description")]
    yield from (_escape(text) for text in dict.fromkeys(texts) if text)
    parameters = [
        (f"`{each['name']}`", each["in"], _type(each.get("schema", {})), _meaning(each, each.get("schema", {})))
        for each in operation.get("parameters", [])
    ]
    if parameters:
        yield _table(("parameter", "in", "type", "meaning"), parameters)
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"Body (`{media}`): {_type(content.get('schema', {}))}"
    # Answers that many routes have are in the document once, and routes refer to them.
    responses = {
        status: shared_answers[answer["$ref"].rpartition("/")[2]] if "$ref" in answer else answer
        for status, answer in sorted(operation.get("responses", {}).items())
    }
    answers = [(status, *_answer(status, answer)) for status, answer in responses.items()]
    if answers:
        yield _table(("status", "meaning", "body"), answers)


def _answer(status: str, answer: dict[str, Any]) -> tuple[str, str]:
    bodies = [_type(content.get("schema", {})) for content in answer.get("content", {}).values()]
    meaning = answer.get("description") or PHRASES.get(status, "")
    return _escape(meaning), ", ".join(dict.fromkeys(body for body in bodies if body))


def _schema(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f"### {name}"
    yield _escape(schema.get("description", ""))
    required = schema.get("required", [])
    rows = [
        (f"`{field}`{' (required)' if field in required else ''}", _type(each), _meaning({}, each))
        for field, each in schema.get("properties", {}).items()
    ]
    if rows:
        yield _table(("field", "type", "meaning"), rows)
    elif "enum" in schema:
        yield _type(schema)


def _type(schema: dict[str, Any]) -> str:
    """Return what a schema lets through, in a few words; a named one as a link to it."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(_type(each) for each in schema[several]))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"array of {_type(schema.get('items', {})) or 'anything'}"
    kind = schema.get("type", "")
    kind = " or ".join(kind) if isinstance(kind, list) else kind
    return f"{kind} ({schema['format']})" if "format" in schema else kind


LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "maxItems": "at most {} items",
    "pattern": "matches `{}`",
    "default": "default `{}`",
}


def _meaning(parameter: dict[str, Any], schema: dict[str, Any]) -> str:
    text = _escape(parameter.get("description") or schema.get("description") or "")
    limits = [words.format(schema[name]) for name, words in LIMITS.items() if schema.get(name) is not None]
    if parameter.get("required"):
        limits.insert(0, "required")
    return "; ".join([*([text] if text else []), *(limit.replace("|", "\\|") for limit in limits)])


# Markdown -------------------------------------------------------------------------------------------------------------


def _escape(text: str) -> str:
    """Return `text` so that Markdown shows it as it is, except that what is between backticks becomes code."""
    pieces = re.split(r"(`[^`]+`)", " ".join(text.split()))
    return "".join(
        piece.replace("|", r"\|") if place % 2 else re.sub(r"([\\`*_{}\[\]<>#|$~^])", r"\\\1", piece)
        for place, piece in enumerate(pieces)
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table; a column that is empty in every row is left out."""
    kept = [place for place in range(len(head)) if any(row[place] for row in rows)]
    lines = [[head[place] for place in kept], ["---"] * len(kept), *([row[place] for place in kept] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
