"""What crosses the wire when numbers are loaded: numbers with what is known of them, and the report of a load."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SkipValidation, StringConstraints, field_validator

from models.wire import Name, Priority, Wire, printable

HIGHEST_TARGET = 100
# More than any number is written with; MAX_DIGITS decides.
LONGEST_NUMBER = 3_000_000
MOST_BITS = 13_000  # of a number sent as a JSON number: what Python's own str() takes


def _number_text(value: Any) -> Any:
    """Small numbers may be sent as JSON numbers, too."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value.bit_length() > MOST_BITS:
            raise ValueError("numbers of thousands of digits are sent as strings")
        return str(value)
    return value.strip() if isinstance(value, str) else value


def _several(value: Any) -> Any:
    """Several texts in one, as a cell of a table has them: parted by spaces, commas or semicolons."""
    return value.replace(",", " ").replace(";", " ").split() if isinstance(value, str) else value


def _prior_text(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ";".join(value)
    return value


NumberText = Annotated[str, BeforeValidator(_number_text), StringConstraints(min_length=1, max_length=LONGEST_NUMBER)]


class GivenComposite(Wire):
    """A number to load, with what is known of it; what is left out is not changed on a number known already."""

    number: NumberText = Field(description="decimal, or an expression such as 2^1277-1")
    current_composite: NumberText | None = Field(None, description="what is left of it; must divide it")
    factors: Annotated[list[NumberText] | None, BeforeValidator(_several)] = Field(None, max_length=10_000)
    has_snfs_form: bool | None = None
    snfs_difficulty: int | None = Field(None, ge=1, le=1_000_000, description="the GNFS-equivalent digit count")
    priority: Priority | None = None
    is_prime: bool | None = Field(None, description="checked here; true is refused of a number that is not")
    is_fully_factored: bool | None = Field(None, description="checked here; true needs the factors")
    target_t_level: float | None = Field(None, gt=0, le=HIGHEST_TARGET, allow_inf_nan=False)
    prior_work: Annotated[str | None, BeforeValidator(_prior_text)] = Field(
        None, max_length=100_000, description="a t-level, such as 35 or t35, or curves, such as 5208@11e6;261@5e4"
    )
    project: Name | None = None

    _printable = field_validator("project")(lambda value: value if not value else printable(value))


class LoadDefaults(Wire):
    default_priority: Priority | None = Field(None, description="of new numbers that give none")
    project_name: Name | None = Field(None, description="of numbers that give none; made if need be")

    _printable = field_validator("project_name")(lambda value: value if not value else printable(value))


class BulkNumbers(LoadDefaults):
    numbers: list[SkipValidation[NumberText]]  # looked at one by one: each bad one is named


class BulkComposites(LoadDefaults):
    composites: list[SkipValidation[GivenComposite]]


class LoadQuery(LoadDefaults):
    on_error: Literal["fail", "skip"] = Field("fail", description="skip: load the good ones and report the bad")
    dry_run: bool = Field(False, description="check and report, and store nothing")

    @field_validator("default_priority", "project_name", mode="before")
    @classmethod
    def _blank(cls, value: Any) -> Any:
        return None if value == "" else value


class UploadForm(LoadDefaults):
    """The fields beside the file of an upload."""

    @field_validator("default_priority", "project_name", mode="before")
    @classmethod
    def _blank(cls, value: Any) -> Any:
        return None if value == "" else value


class BadEntry(Wire):
    """A number that was not loaded, and why: its line (or its place in an array, from 1), shortened, in words."""

    line: int
    number: str
    reason: str
    message: str


class LoadReport(Wire):
    """What a load did. `errors` has the first 100 of the `invalid_numbers`."""

    total_processed: int
    new_composites: int
    existing_composites: int
    updated_composites: int
    invalid_numbers: int
    errors: list[BadEntry]
    ignored_columns: list[str]
    message: str
