"""Errors that refuse a request of an operator: the message is for people, `reason` is a word for programs."""


class DomainError(Exception):
    """The request was refused and nothing was changed."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class NotFoundError(DomainError):
    """The row that the request names does not exist."""


class ConflictError(DomainError):
    """The current state forbids the request."""


class InvalidClaimError(DomainError):
    """A statement in the request is false, such as a factor that does not divide the number."""


def composite_not_found(composite_id: int) -> NotFoundError:
    """Return the error for a composite id that does not exist."""
    return NotFoundError("unknown_composite", f"There is no composite with id {composite_id}")
