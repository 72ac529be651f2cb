"""Which composites a text means: any value that a composite has had, in any spelling, or an id."""

from sqlalchemy import Connection, select

from coordinator.base.errors import NotFoundError
from coordinator.composites import registry, values
from coordinator.numbers.expressions import ExpressionError, shorten
from models.tables import Composite, CompositeAlias

MAX_ID_DIGITS = 18  # every text of so many digits is in the range of a bigint


def matching_ids(connection: Connection, text: str, max_digits: int) -> list[int]:
    """Return the ids of all composites that `text` may mean, the best match first.

    That is the composite of `registry.find`, then the others that have had the same value, then the one with this id.
    Raises ExpressionError for a text that is no number.
    """
    best = registry.find(connection, text, max_digits)
    ids = [] if best is None else [best.id]
    same_value = select(CompositeAlias.composite_id).where(CompositeAlias.value_sha256 == values.sha256(text))
    ids += connection.execute(same_value.order_by(CompositeAlias.composite_id)).scalars()
    if text.isascii() and text.isdigit() and len(text) <= MAX_ID_DIGITS:
        ids += connection.execute(select(Composite.id).where(Composite.id == int(text))).scalars()
    return list(dict.fromkeys(ids))


def identify(connection: Connection, identifier: str | int, max_digits: int) -> int:
    """Return the id of the composite that best matches a text; an int is an id, and is returned as it is.

    Raises NotFoundError if the text is no number, or if no composite matches it.
    """
    if isinstance(identifier, int):
        return identifier
    try:
        ids = matching_ids(connection, identifier, max_digits)
    except ExpressionError as error:
        raise NotFoundError("unknown_composite", error.detail) from error
    if not ids:
        raise NotFoundError(
            "unknown_composite", f"{shorten(identifier)} is neither a number of this server nor the id of one"
        )
    return ids[0]
