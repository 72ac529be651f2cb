"""Why something that an operator asks for is not done; messages are for people, `reason` is a word for programs."""


class Refusal(Exception):
    """Nothing was changed."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Unknown(Refusal):
    """There is no such thing."""


class Conflict(Refusal):
    """What is there already stands against it."""


class Wrong(Refusal):
    """What was said is not true: a factor that does not divide."""


def no_composite(composite_id: int) -> Unknown:
    """There is no composite with that id."""
    return Unknown("unknown_composite", f"There is no composite with id {composite_id}")
