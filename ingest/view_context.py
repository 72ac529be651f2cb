"""What views share: the engine and the settings of this process, and answers in the shape of the specification."""

from typing import Any

from flask import Response, current_app
from pydantic import BaseModel
from sqlalchemy import Engine

from config.settings import Settings


def engine() -> Engine:
    """Return the engine of this process."""
    found: Engine = current_app.config["ENGINE"]
    return found


def settings() -> Settings:
    """Return the settings of the application."""
    found: Settings = current_app.config["SETTINGS"]
    return found


def json_of(model: type[BaseModel], body: Any) -> Response:
    """Return the mapping `body` as JSON in the shape of `model`."""
    # Not orjson: it refuses integers past 64 bits, and a B2 may be one.
    return Response(model.model_validate(body).model_dump_json(), 200, content_type="application/json")
