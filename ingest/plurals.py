"""Counts with their nouns, as pages, commands and answers write them: "1 number", "1,234 numbers"."""


def counted(count: float, singular: str, plural: str | None = None) -> str:
    """Return `count` with thousands separators and its noun; `plural` is `singular` with an "s" unless given."""
    noun = singular if count == 1 else plural or f"{singular}s"
    return f"{count:,.0f} {noun}"
