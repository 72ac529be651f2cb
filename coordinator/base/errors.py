"""Why something that an operator asks for is not done; messages are for people, `reason` is a word for programs."""


class DomainError(Exception):
    """Nothing was changed."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class NotFoundError(DomainError):
    """There is no such thing."""


class ConflictError(DomainError):
    """What is there already stands against it."""


class InvalidClaimError(DomainError):
    """What was said is not true: a factor that does not divide."""


def composite_not_found(composite_id: int) -> NotFoundError:
    """There is no composite with that id."""
    return NotFoundError("unknown_composite", f"There is no composite with id {composite_id}")
