"""Numbers to load with what is known of them, and the report of a load."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SkipValidation, StringConstraints

from models.wire.common import HIGHEST_T_LEVEL, MOST_DIGITS, Name, OrBlank, Priority, WireModel

# More than any number is written with; MAX_DIGITS decides.
LONGEST_NUMBER = 3_000_000
MOST_BITS = 13_000  # of a number sent as a JSON number: what Python's own str() takes


def _number_text(value: Any) -> Any:
    """Return a JSON number as a text; long ones raise ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value.bit_length() > MOST_BITS:
            raise ValueError("numbers of thousands of digits are sent as strings")
        return str(value)
    return value.strip() if isinstance(value, str) else value


def _several(value: Any) -> Any:
    """Split the text of a table's cell at spaces, commas and semicolons."""
    return value.replace(",", " ").replace(";", " ").split() if isinstance(value, str) else value


def _prior_text(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ";".join(value)
    return value


NumberText = Annotated[
    str,
    BeforeValidator(_number_text, json_schema_input_type=str | int),
    StringConstraints(min_length=1, max_length=LONGEST_NUMBER),
]


class GivenComposite(WireModel):
    """A number with what is known of it. Fields that are left out stay unchanged on a number that is known already."""

    number: NumberText = Field(description="The number in decimal, or an expression such as 2^1277-1.")
    current_composite: NumberText | None = Field(None, description="The cofactor; it must divide the number.")
    factors: Annotated[list[NumberText] | None, BeforeValidator(_several)] = Field(None, max_length=10_000)
    has_snfs_form: bool | None = None
    snfs_difficulty: int | None = Field(
        None, ge=1, le=MOST_DIGITS, description="The digits of a number that is as hard for GNFS."
    )
    priority: Priority | None = None
    is_prime: bool | None = Field(None, description="Checked by the server; true is refused for a composite number.")
    is_fully_factored: bool | None = Field(None, description="Checked by the server; true needs the factors.")
    target_t_level: float | None = Field(None, gt=0, le=HIGHEST_T_LEVEL, allow_inf_nan=False)
    prior_work: Annotated[str | None, BeforeValidator(_prior_text)] = Field(
        None,
        max_length=100_000,
        description="A t-level, such as 35 or t35, or curves at each B1, such as 5208@11e6;261@5e4.",
    )
    project: Name | None = None


class LoadDefaults(WireModel):
    """The priority and the project of numbers that name none."""

    default_priority: OrBlank[Priority] = Field(None, description="The priority of new numbers that have none.")
    project_name: OrBlank[Name] = Field(
        None, description="The project of numbers that name none; an unknown one is created."
    )


class BulkNumbers(LoadDefaults):
    """Numbers to load."""

    # Entries are validated one by one afterwards, so that the answer names every bad one.
    numbers: list[SkipValidation[NumberText]] = Field(json_schema_extra={"minItems": 1})


class BulkComposites(LoadDefaults):
    """Numbers to load, with what is known of them."""

    composites: list[SkipValidation[GivenComposite]] = Field(json_schema_extra={"minItems": 1})


class LoadQuery(LoadDefaults):
    """How to load."""

    on_error: Literal["fail", "skip"] = Field(
        "fail", description="fail: one invalid number refuses them all; skip: the valid ones are loaded."
    )
    dry_run: bool = Field(False, description="Check and report, but store nothing.")


class UploadForm(LoadDefaults):
    """The fields of an upload beside the file."""


class BadEntry(WireModel):
    """A number that was not loaded, and the reason."""

    line: int = Field(description="The line, or the position in an array from 1.")
    number: str = Field(description="The number as it was sent, shortened.")
    reason: str
    message: str


class SharedEntry(WireModel):
    """A new number whose unfinished part another number has, too.

    Work on this part is done once and counts for both numbers.
    """

    line: int = Field(description="The line, or the position in an array from 1.")
    number: str = Field(description="The number as it was sent, shortened.")
    message: str = Field(description="Which number has this part, too.")


class LoadReport(WireModel):
    """What a load did."""

    total_processed: int
    new_composites: int
    existing_composites: int
    updated_composites: int
    invalid_numbers: int
    errors: list[BadEntry] = Field(description="The first 100 of the invalid numbers.")
    shared_composites: int = Field(description="New numbers whose unfinished part another number has, too.")
    shared: list[SharedEntry] = Field(description="The first 100 of these.")
    ignored_columns: list[str]
    message: str
