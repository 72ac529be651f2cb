"""What views share: this process's engine and settings, and answers in the shape that the specification promises."""

from typing import Any

from flask import Response, current_app
from pydantic import BaseModel
from sqlalchemy import Engine

from config.settings import Settings


def engine() -> Engine:
    """This process's engine."""
    found: Engine = current_app.config["ENGINE"]
    return found


def settings() -> Settings:
    """The application's settings."""
    found: Settings = current_app.config["SETTINGS"]
    return found


def json_of(model: type[BaseModel], body: Any) -> Response:
    """`body`, a mapping, as JSON in the shape of `model`."""
    # Not orjson: it refuses integers past 64 bits, and a B2 may be one.
    return Response(model.model_validate(body).model_dump_json(), 200, content_type="application/json")
