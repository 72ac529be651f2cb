"""Numbers as people write them: decimal, or an expression such as 2^1277-1, (10^71-1)/9, 5!+1, 7#-1.

    sum      = product (("+" | "-") product)*
    product  = power (("*" | "/") power)*
    power    = atom (("^" | "**") power)?          right associative
    atom     = (digits | "(" sum ")") ("!" | "#")*

`parse` reads a text and estimates every intermediate result's size before anything is computed, so that 9^9^9^9 is
refused at once; `evaluate` computes. Division must be exact. Signs, spaces around the whole, digits other than 0-9 and
anything else are refused.
"""

import math
import re
from dataclasses import dataclass
from typing import NoReturn

import gmpy2
from gmpy2 import mpz

MOST_CHARACTERS = 1_000_000
DEEPEST = 100
# What stays written out while it is estimated: exponents and arguments of ! and # have to be known exactly.
EXACT_LIMIT = 10**7

TOKEN = re.compile(r"[ \t]*(?:(?P<digits>[0-9]+)|(?P<operator>\*\*|[-+*/^()!#]))")


class ExpressionError(ValueError):
    """A text that is no number we take; `reason` is a word for programs, `detail` a sentence for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.field = "composite"  # what of a result it is about


@dataclass(frozen=True)
class Node:
    """A parsed expression: an operator with its operands, or a decimal literal (`operator` "digits", `text`).

    `log10` is an upper estimate of the value's decimal logarithm; `exact` its value where that is small and free.
    """

    operator: str
    operands: tuple["Node", ...] = ()
    text: str = ""
    log10: float = 0.0
    exact: int | None = None

    @property
    def is_zero(self) -> bool:
        """Whether the value is known to be 0 without computing it."""
        return self.exact == 0 or (self.operator == "digits" and not self.text.strip("0"))


def decimal(n: mpz) -> str:
    """`n` in decimal, however long it is."""
    return mpz(n).digits(10)


def shorten(text: str, most: int = 44) -> str:
    """A number as it can stand in a sentence: long ones with their middle left out and their length said."""
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= most:
        return text
    unit = "digits" if text.isascii() and text.isdigit() else "characters"
    return f"{text[:16]}...{text[-16:]} ({len(text)} {unit})"


def parse(text: str, max_digits: int) -> Node:
    """The parsed expression; raises ExpressionError if it cannot be read or could exceed `max_digits` digits.

    No intermediate result may exceed twice that either (a product is divided again in many a Cunningham cofactor).
    """
    if text.isascii() and text.isdigit():  # nearly every number that comes in
        if len(text) > max_digits:
            _too_large(text, max_digits)
        if text[0] == "0" and len(text) > 1:
            raise ExpressionError("malformed_number", f"{shorten(text)} begins with a zero; leave leading zeros out")
        return Node("digits", text=text)
    if len(text) > min(MOST_CHARACTERS, 4 * max_digits):
        _too_large(text, max_digits)
    return _Parser(text, max_digits).parse()


def check_number(text: str, max_digits: int) -> None:
    """Refuse, before it is computed, a text that cannot stand for a number to factor; raises ExpressionError."""
    node = parse(text, max_digits)
    small = int(node.text) if node.operator == "digits" and len(node.text) < 20 else node.exact
    if small is not None and small <= 1:
        _refuse_small(text, mpz(small))


def evaluate(text: str, max_digits: int) -> mpz:
    """The exact integer value of a text, which may be zero or negative; raises ExpressionError."""
    value = _compute(parse(text, max_digits), text)
    if value.num_digits(10) > max_digits + 1:
        _too_large(text, max_digits)
    return value


def evaluate_number(text: str, max_digits: int) -> mpz:
    """The value of a text that stands for a number to factor: an integer above 1; raises ExpressionError."""
    value = evaluate(text, max_digits)
    if value <= 1:
        _refuse_small(text, value)
    return value


def _refuse_small(text: str, value: mpz) -> NoReturn:
    reason = "not_positive" if value < 1 else "number_is_one"
    detail = f"{shorten(text)} has the value {shorten(decimal(value))}; a number to factor should be greater than 1"
    raise ExpressionError(reason, detail)


def _too_large(text: str, max_digits: int) -> NoReturn:
    detail = f"{shorten(text)} is too large: numbers of at most {max_digits} digits are taken (MAX_DIGITS)"
    raise ExpressionError("number_too_large", detail)


class _Parser:
    def __init__(self, text: str, max_digits: int) -> None:
        self.text = text
        self.max_digits = max_digits
        self.position = 0
        self.depth = 0
        self.token: str | None = None
        if text != text.strip():
            self._malformed("has spaces around it; leave them out")
        self._advance()

    def parse(self) -> Node:
        node = self._sum()
        if self.token is not None:
            self._malformed(f"cannot be read from {self.token[:20]!r} on")
        if node.log10 > self.max_digits + 1:
            _too_large(self.text, self.max_digits)
        return node

    def _malformed(self, what: str) -> NoReturn:
        detail = f"{shorten(self.text)!r} {what}; write a decimal number or an expression such as 2^1277-1"
        raise ExpressionError("malformed_number", detail)

    def _advance(self) -> None:
        if self.position == len(self.text):
            self.token = None
            return
        match = TOKEN.match(self.text, self.position)
        if not match:
            self._malformed(f"has a character at position {self.position + 1} that belongs to no number")
        self.position = match.end()
        self.token = match["digits"] or match["operator"]

    def _take(self, *operators: str) -> str | None:
        if self.token not in operators:
            return None
        taken = self.token
        self._advance()
        return taken

    def _sum(self) -> Node:
        self.depth += 1
        if self.depth > DEEPEST:
            self._malformed(f"is nested more than {DEEPEST} levels deep")
        node = self._product()
        while operator := self._take("+", "-"):
            right = self._product()
            log10 = max(node.log10, right.log10) + 0.31
            node = self._node(operator, (node, right), log10)
        self.depth -= 1
        return node

    def _product(self) -> Node:
        node = self._power()
        while operator := self._take("*", "/"):
            right = self._power()
            # A quotient is at most its dividend: the divisor's size is only estimated.
            log10 = node.log10 + right.log10 if operator == "*" else node.log10
            node = self._node(operator, (node, right), log10)
        return node

    def _power(self) -> Node:
        base = self._postfix()
        if not self._take("^", "**"):
            return base
        self.depth += 1
        if self.depth > DEEPEST:
            self._malformed(f"is nested more than {DEEPEST} levels deep")
        exponent = self._power()
        self.depth -= 1
        if exponent.exact is None:
            if base.exact in (0, 1):
                return base
            _too_large(self.text, self.max_digits)
        if exponent.exact < 0:
            detail = f"{shorten(self.text)} has a negative exponent; a number to factor is an integer"
            raise ExpressionError("not_an_integer", detail)
        return self._node("^", (base, exponent), base.log10 * exponent.exact)

    def _postfix(self) -> Node:
        node = self._atom()
        while operator := self._take("!", "#"):
            if node.exact is None or node.exact > EXACT_LIMIT:
                _too_large(self.text, self.max_digits)
            if node.exact < 0:
                self._malformed(f"takes {operator} of a negative number")
            if operator == "!":
                log10 = math.lgamma(node.exact + 1) / math.log(10)
            else:  # the sum of log p over primes p <= n is below 1.02 n (Rosser and Schoenfeld 1962)
                log10 = 1.02 * node.exact / math.log(10)
            node = self._node(operator, (node,), log10)
        return node

    def _atom(self) -> Node:
        if self._take("("):
            node = self._sum()
            if not self._take(")"):
                self._malformed("has a parenthesis that is not closed")
            return node
        if self.token is None or not self.token.isdigit():
            self._malformed("ends too early" if self.token is None else f"has {self.token!r} where a number should be")
        digits = self.token
        self._advance()
        if self.token is not None and self.token.isdigit():
            self._malformed("has spaces inside a number; leave them out")
        if len(digits) > self.max_digits:
            _too_large(self.text, self.max_digits)
        exact = int(digits) if len(digits) <= 20 else None
        log10 = math.log10(exact) if exact else float(len(digits)) if exact is None else 0.0
        return Node("digits", text=digits, log10=log10, exact=exact)

    def _node(self, operator: str, operands: tuple[Node, ...], log10: float) -> Node:
        if log10 > 2 * self.max_digits + 20:
            _too_large(self.text, self.max_digits)
        exact: int | None = None
        values = [operand.exact for operand in operands]
        if log10 < 18 and None not in values:
            exact = _small(operator, *values)  # type: ignore[arg-type]
        return Node(operator, operands, log10=log10, exact=exact)


def _small(operator: str, left: int, right: int = 0) -> int | None:
    """The value of an operation whose result is below 10^18, if it is an integer."""
    if operator == "/":
        return left // right if right and left % right == 0 else None
    if operator in ("!", "#"):
        return int(gmpy2.fac(left) if operator == "!" else gmpy2.primorial(left))
    return {"+": left + right, "-": left - right, "*": left * right}.get(operator, left**right if operator == "^" else 0)


def _compute(node: Node, text: str) -> mpz:
    # Chains of + and * lean to the left and can be long: follow them in a loop, nest only where parentheses do.
    chain = []
    while len(node.operands) == 2 and node.operator in "+-*/":
        chain.append((node.operator, node.operands[1]))
        node = node.operands[0]
    value = _compute_one(node, text)
    for operator, right in reversed(chain):
        other = _compute(right, text)
        if operator == "+":
            value += other
        elif operator == "-":
            value -= other
        elif operator == "*":
            value *= other
        else:
            value = _divide(value, other, text)
    return value


def _compute_one(node: Node, text: str) -> mpz:
    if node.operator == "digits":
        return mpz(node.text)
    first = _compute(node.operands[0], text)
    if node.operator == "^":
        return first ** int(_compute(node.operands[1], text))
    return gmpy2.fac(int(first)) if node.operator == "!" else gmpy2.primorial(int(first))


def _divide(dividend: mpz, divisor: mpz, text: str) -> mpz:
    if divisor == 0:
        raise ExpressionError("division_by_zero", f"{shorten(text)} divides by zero")
    quotient, rest = gmpy2.t_divmod(dividend, divisor)
    if rest:
        detail = f"{shorten(text)} is not an integer: {shorten(decimal(divisor))} leaves a remainder"
        raise ExpressionError("not_an_integer", detail)
    return quotient
