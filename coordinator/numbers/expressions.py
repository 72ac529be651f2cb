"""Numbers as people write them: decimal, or an expression such as 2^1277-1, (10^71-1)/9, 5!+1, 7#-1.

    sum      = product (("+" | "-") product)*
    product  = power (("*" | "/") power)*
    power    = postfix (("^" | "**") power)?           right associative
    postfix  = atom ("!" | "!" digits | "#")?          factorial, n!k = n (n-k) (n-2k) ..., primorial
    atom     = digits | "(" sum ")"

`parse` bounds every intermediate result's size before anything large is computed, so that 9^9^9^9 is refused at once;
`evaluate` computes. Division must be exact. Refused: signs, leading zeros, spaces around the whole or inside a number
(between the parts of an expression they are fine), digits other than 0-9, and n!!, which some read as (n!)! and others
as n!2.
"""

import math
import re
from dataclasses import dataclass
from typing import NoReturn

import gmpy2
from gmpy2 import mpz

# Nesting costs the parser stack, operations cost the evaluator time; nobody's number comes near either.
DEEPEST = 50
MOST_OPERATIONS = 1000
# Values up to this size are computed while parsing: exponents and arguments of ! and # have to be known then.
EXACT_DIGITS = 100
# gmpy2's factorials take machine words.
LARGEST_WORD = 2**62
LOG10_2 = math.log10(2)

TOKEN = re.compile(r"[ \t]*(?:(?P<digits>[0-9]+)|(?P<operator>\*\*|[-+*/^()!#]))")


class ExpressionError(ValueError):
    """A text that is no number we take; `reason` is a word for programs, `detail` a sentence for people.

    Reasons: malformed_number, number_too_large, not_an_integer, division_by_zero, not_positive, number_is_one.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.field = "composite"  # the field of a result that it is about


@dataclass(frozen=True, eq=False)
class Node:
    """An operator with its operands, or a decimal literal (`operator` "digits", `text`).

    `low` and `high` bound the decimal logarithm of the absolute value (`low` is -inf where it may be 0); `exact` is
    the value where that is small.
    """

    operator: str
    operands: tuple["Node", ...] = ()
    text: str = ""
    low: float = -math.inf
    high: float = 0.0
    exact: int | None = None


@dataclass(frozen=True, eq=False)
class Expression:
    """What was written, and how it is to be computed."""

    text: str
    root: Node


def decimal(n: mpz) -> str:
    """`n` in decimal, however long it is (Python's own int() and str() refuse beyond 4,300 digits)."""
    return mpz(n).digits(10)


def shorten(text: str, most: int = 44) -> str:
    """A number as it can stand in a sentence: long ones with their middle left out and their length said.

    What cannot be printed or stored (NUL, line ends, lone surrogates) becomes a question mark.
    """
    if len(text) <= most:
        return _printable(text)
    unit = "digits" if text.isascii() and text.isdigit() else "characters"
    return f"{_printable(text[:16])}...{_printable(text[-16:])} ({len(text)} {unit})"


def parse(text: str, max_digits: int) -> Expression:
    """The parsed expression; raises ExpressionError if it cannot be read or is too large.

    Neither the value may exceed `max_digits` digits nor any intermediate result twice that: the numerator of a
    Cunningham number's primitive part is longer than the part. The few values whose size is in doubt by one digit
    are left to `evaluate`, and so are divisions of large numbers.
    """
    if len(text) > 2 * max_digits + 1000:
        _too_large(text, max_digits)
    if text.isascii() and text.isdigit():  # nearly every number that comes in
        return Expression(text, _literal(text, text, max_digits))
    return Expression(text, _Parser(text, max_digits).parse())


def parse_number(text: str, max_digits: int) -> Expression:
    """`parse` for a number to factor: 0, 1 and below are refused as well, as far as they show without computing."""
    expression = parse(text, max_digits)
    if expression.root.exact is not None:
        _above_one(expression.root.exact, text)
    return expression


def evaluate(written: str | Expression, max_digits: int) -> mpz:
    """The exact integer value, which may be zero or negative; raises ExpressionError."""
    expression = parse(written, max_digits) if isinstance(written, str) else written
    value = _compute(expression.root, expression.text)
    # num_digits is right or one too many.
    if value.num_digits(10) > max_digits and abs(value) >= mpz(10) ** max_digits:
        _too_large(expression.text, max_digits)
    return value


def evaluate_number(written: str | Expression, max_digits: int) -> mpz:
    """The value of a text that stands for a number to factor: an integer above 1; raises ExpressionError."""
    expression = parse(written, max_digits) if isinstance(written, str) else written
    value = evaluate(expression, max_digits)
    _above_one(value, expression.text)
    return value


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _above_one(value: mpz | int, text: str) -> None:
    if value <= 1:
        said = shorten(text) if text in ("0", "1") else f"{shorten(text)} is {shorten(decimal(mpz(value)))}; it"
        reason = "number_is_one" if value == 1 else "not_positive"
        raise ExpressionError(reason, f"{said} is no number to factor; send an integer greater than 1")


def _too_large(text: str, max_digits: int) -> NoReturn:
    detail = f"{shorten(text)} is too large; numbers of at most {max_digits} digits are taken (MAX_DIGITS)"
    raise ExpressionError("number_too_large", detail)


def _malformed(text: str, what: str) -> NoReturn:
    detail = f"{shorten(text)!r} {what}; write a decimal number or an expression such as 2^1277-1"
    raise ExpressionError("malformed_number", detail)


def _not_an_integer(text: str, why: str) -> NoReturn:
    detail = f"{shorten(text)} is not an integer: {why}; every division should leave no remainder"
    raise ExpressionError("not_an_integer", detail)


def _literal(digits: str, text: str, max_digits: int) -> Node:
    if len(digits) > max_digits:
        _too_large(text, max_digits)
    if digits[0] == "0" and len(digits) > 1:
        _malformed(text, "has a number that begins with a zero")
    if len(digits) <= EXACT_DIGITS:
        return _known("digits", (), int(digits), digits)
    leading, rest = int(digits[:15]), len(digits) - 15
    return Node("digits", text=digits, low=math.log10(leading) + rest, high=math.log10(leading + 1) + rest)


def _known(operator: str, operands: tuple[Node, ...], value: int, digits: str = "") -> Node:
    low = math.log10(abs(value)) if value else -math.inf
    return Node(operator, operands, digits, low, max(low, 0.0), value)


class _Parser:
    """Recursive descent over `text`; `token` is the next one, None at the end."""

    def __init__(self, text: str, max_digits: int) -> None:
        self.text = text
        self.max_digits = max_digits
        self.position = 0
        self.depth = 0
        self.operations = 0
        self.token: str | None = None

    def parse(self) -> Node:
        if self.text != self.text.strip():
            _malformed(self.text, "has spaces around it")
        self._advance()
        node = self._sum()
        if self.token is not None:
            _malformed(self.text, f"cannot be read from {shorten(self.token)!r} on")
        if node.exact is not None:
            too_large = len(str(abs(node.exact))) > self.max_digits
        else:
            too_large = node.low >= self.max_digits or node.high > self.max_digits + 1
        if too_large:
            _too_large(self.text, self.max_digits)
        return node

    def _advance(self) -> None:
        if self.position == len(self.text):
            self.token = None
            return
        match = TOKEN.match(self.text, self.position)
        if not match:
            _malformed(self.text, f"has a character after position {self.position} that belongs to no number")
        self.position = match.end()
        self.token = match["digits"] or match["operator"]

    def _take(self, *operators: str) -> str | None:
        if self.token not in operators:
            return None
        taken = self.token
        self._advance()
        return taken

    def _enter(self) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            _malformed(self.text, f"is nested more than {DEEPEST} levels deep")

    def _sum(self) -> Node:
        node = self._product()
        while operator := self._take("+", "-"):
            right = self._product()
            node = self._node(operator, (node, right), *_sum_size(node, right))
        return node

    def _product(self) -> Node:
        node = self._power()
        while operator := self._take("*", "/"):
            right = self._power()
            if operator == "*":
                low, high = node.low + right.low, node.high + right.high
            else:  # a divisor that is no integer above 0 in size ends the evaluation
                low, high = node.low - right.high, node.high - max(right.low, 0.0)
            node = self._node(operator, (node, right), low, max(high, 0.0))
        return node

    def _power(self) -> Node:
        base = self._postfix()
        if not self._take("^", "**"):
            return base
        self._enter()
        exponent = self._power()
        self.depth -= 1
        if exponent.exact is None:
            _too_large(self.text, self.max_digits)
        if exponent.exact < 0:
            _not_an_integer(self.text, f"it has the exponent {shorten(str(exponent.exact))}")
        # To the power 0 all is 1, but its base has to be an integer too.
        low, high = (base.low * exponent.exact, base.high * exponent.exact) if exponent.exact else (0.0, 0.0)
        return self._node("^", (base, exponent), low, high)

    def _postfix(self) -> Node:
        node = self._atom()
        operator = self._take("!", "#")
        if operator is None:
            return node
        if node.exact is None or node.exact > LARGEST_WORD:
            _too_large(self.text, self.max_digits)
        if node.exact < 0:
            _malformed(self.text, f"takes {operator} of a negative number")
        if self.token in ("!", "#"):
            _malformed(self.text, f"has {operator}{self.token}, which is read in more than one way, as (n!)! or as n!2")
        if operator == "#":
            return self._node("#", (node,), *_primorial_size(node.exact))
        if self.token is None or not self.token.isdigit():
            step = _known("digits", (), 1, "1")
        else:
            step = _literal(self.token, self.text, self.max_digits)
            if step.exact is None or not 0 < step.exact <= LARGEST_WORD:
                _malformed(self.text, f"has !{shorten(self.token)}; the step of a multifactorial is a small number")
            self._advance()
        return self._node("!", (node, step), *_factorial_size(node.exact, step.exact or 1))

    def _atom(self) -> Node:
        if self._take("("):
            self._enter()
            node = self._sum()
            self.depth -= 1
            if not self._take(")"):
                _malformed(self.text, "has a parenthesis that is not closed")
            return node
        if self.token is None:
            _malformed(self.text, "ends where a number should be")
        if not self.token.isdigit():
            _malformed(self.text, f"has {self.token!r} where a number should be")
        node = _literal(self.token, self.text, self.max_digits)
        self._advance()
        if self.token is not None and self.token.isdigit():
            _malformed(self.text, "has spaces inside a number")
        return node

    def _node(self, operator: str, operands: tuple[Node, ...], low: float, high: float) -> Node:
        self.operations += 1
        if self.operations > MOST_OPERATIONS:
            _malformed(self.text, f"has more than {MOST_OPERATIONS} operations")
        if high > 2 * self.max_digits + 20:
            _too_large(self.text, self.max_digits)
        values = [operand.exact for operand in operands if operand.exact is not None]
        if high < EXACT_DIGITS and len(values) == len(operands):
            return _known(operator, operands, int(_operate(operator, [mpz(value) for value in values], self.text)))
        return Node(operator, operands, low=low, high=high)


def _sum_size(left: Node, right: Node) -> tuple[float, float]:
    """(low, high) of both the sum and the difference: the signs are not known."""
    larger, smaller = (left, right) if left.high >= right.high else (right, left)
    high = larger.high + math.log1p(10 ** (smaller.high - larger.high)) / math.log(10) + 1e-9
    # At most half as large as the other, the smaller takes at most half of it away.
    low = larger.low - LOG10_2 if larger.low - smaller.high > LOG10_2 else -math.inf
    return low, high


def _factorial_size(n: int, step: int) -> tuple[float, float]:
    """(low, high) of n!step: `step` of these, from n!step down, make n!, and none exceeds a later one n times over."""
    whole = math.lgamma(n + 1) / math.log(10)
    return whole / step if n > step else 0.0, whole / step + math.log10(max(n, 1))


def _primorial_size(n: int) -> tuple[float, float]:
    """(low, high): 0.84 n < sum of log p over the primes p <= n < 1.01624 n, the former from 101 on.

    Rosser and Schoenfeld, Approximate formulas for some functions of prime numbers (1962), theorems 9 and 10.
    """
    return 0.84 * n / math.log(10) if n >= 101 else 0.0, 1.01624 * n / math.log(10)


def _operate(operator: str, values: list[mpz], text: str) -> mpz:
    left, right = values[0], values[-1]
    match operator:
        case "+":
            value = left + right
        case "-":
            value = left - right
        case "*":
            value = left * right
        case "/":
            value = _divide(left, right, text)
        case "^":  # GMP takes no exponent beyond a machine word; only 0, 1 and -1 can have one here
            value = left ** (right if right < 2 or abs(left) > 1 else 2 - right % 2)
        case "!":
            value = gmpy2.multi_fac(int(left), int(right))
        case _:
            value = gmpy2.primorial(int(left))
    return value


def _divide(dividend: mpz, divisor: mpz, text: str) -> mpz:
    if divisor == 0:
        raise ExpressionError("division_by_zero", f"{shorten(text)} divides by zero; leave that division out")
    quotient, rest = gmpy2.t_divmod(dividend, divisor)
    if rest:
        _not_an_integer(text, f"the division by {shorten(decimal(divisor))} leaves a remainder")
    return quotient


def _compute(node: Node, text: str) -> mpz:
    # Chains of + and * lean to the left and can be long: follow them in a loop, nest only as the text does.
    chain = []
    while node.exact is None and node.operator != "digits":
        chain.append(node)
        node = node.operands[0]
    value = mpz(node.text) if node.exact is None else mpz(node.exact)
    for outer in reversed(chain):
        others = [_compute(operand, text) for operand in outer.operands[1:]]
        value = _operate(outer.operator, [value, *others], text)
    return value
