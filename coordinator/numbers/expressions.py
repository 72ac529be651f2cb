"""Numbers as people write them: decimal, or an expression such as 2^1277-1, (10^71-1)/9, 5!+1, 7#-1.

    sum      = product (("+" | "-") product)*
    product  = power (("*" | "/") power)*
    power    = postfix (("^" | "**") power)?           right associative
    postfix  = atom ("!" | "!" digits | "#")?          factorial, n!k = n (n-k) (n-2k) ..., primorial
    atom     = digits | "(" sum ")"

`parse` bounds the size of every intermediate result before anything large is computed, so it refuses 9^9^9^9 at once;
`evaluate` computes the value. Divisions must be exact. The syntax has no signs, no leading zeros, no spaces around the
whole or inside a number (spaces between the parts of an expression are allowed), no digits other than 0-9, and no n!!,
which some read as (n!)! and others as n!2.
"""

import math
import re
from dataclasses import dataclass
from typing import NoReturn

import gmpy2
from gmpy2 import mpz

# Nesting costs stack in the parser, operations cost time in the evaluator. Real numbers are far below both limits.
MAX_DEPTH = 50
MAX_OPERATIONS = 1000
# The longest expression, in characters; a number in decimal may be as long as MAX_DIGITS allows.
LONGEST_EXPRESSION = 4000
# The intermediate results of an expression may have so many times MAX_DIGITS digits together. A power of 50,000 digits
# takes half a millisecond, so the largest expression takes some hundredths of a second; 4,000 characters of powers
# took 0.2 s. The parser adds up the digits before anything large is computed.
MAX_WORK = 30
USUAL_MAX_DIGITS = 50_000  # where MAX_DIGITS is smaller, expressions cost less anyway
# The parser computes values up to this size, because it needs exponents and arguments of ! and #.
EXACT_DIGITS = 100
# gmpy2's factorials take machine words.
LARGEST_WORD = 2**62
LOG10_2 = math.log10(2)

TOKEN = re.compile(r"[ \t]*(?:(?P<digits>[0-9]+)|(?P<operator>\*\*|[-+*/^()!#]))")


class ExpressionError(ValueError):
    """The text is not a number that this server accepts.

    `reason` is a word for programs, `detail` a sentence for people.

    Reasons: malformed_number, number_too_large, not_an_integer, division_by_zero, not_positive, number_is_one.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.field = "composite"  # the field of a result that has the error


@dataclass(frozen=True, eq=False)
class ExpressionNode:
    """An operator with its operands, or a decimal literal (`operator` is "digits", `text` the literal).

    `low` and `high` bound the decimal logarithm of the absolute value (`low` is -inf if the value may be 0); `exact` is
    the value if it is small.
    """

    operator: str
    operands: tuple["ExpressionNode", ...] = ()
    text: str = ""
    low: float = -math.inf
    high: float = 0.0
    exact: int | None = None


@dataclass(frozen=True, eq=False)
class Expression:
    """A parsed text: the text itself, and the tree of its operations."""

    text: str
    root: ExpressionNode


def decimal(n: mpz) -> str:
    """Return `n` in decimal, however long it is (Python's own int() and str() refuse beyond 4,300 digits)."""
    text: str = mpz(n).digits(10)
    return text


def shorten(text: str, most: int = 44) -> str:
    """Return a number for use in a sentence: a long one loses its middle and gets its length instead.

    Characters that cannot be printed or stored (NUL, line ends, lone surrogates) become question marks.
    """
    if len(text) <= most:
        return _printable(text)
    unit = "digits" if text.isascii() and text.isdigit() else "characters"
    return f"{_printable(text[:16])}...{_printable(text[-16:])} ({len(text)} {unit})"


def parse(text: str, max_digits: int) -> Expression:
    """Parse an expression; raises ExpressionError if it cannot be read, is too large or takes too long to compute.

    The value may have at most `max_digits` digits and intermediate results twice as many, because the numerator of a
    Cunningham number's primitive part is longer than the part. `evaluate` decides in the few cases in which the bounds
    leave the size open by one digit, and checks divisions of large numbers. An expression has at most
    LONGEST_EXPRESSION characters, and its intermediate results have a limit on their digits together (MAX_WORK).
    """
    if text.isascii() and text.isdigit():  # nearly every number that clients send
        return Expression(text, _literal(text, text, max_digits))
    if len(text) > LONGEST_EXPRESSION:
        _too_long(text)
    return Expression(text, _Parser(text, max_digits, MAX_WORK * max(max_digits, USUAL_MAX_DIGITS)).parse())


def parse_number(text: str, max_digits: int) -> Expression:
    """`parse` a number to factor; also refuses values below 2, if the parser knows the value."""
    expression = parse(text, max_digits)
    if expression.root.exact is not None:
        _above_one(expression.root.exact, text)
    return expression


def evaluate_stored(text: str, max_digits: int) -> mpz:
    """Compute a number that this server has registered; an earlier version may have taken a longer expression."""
    if text.isascii() and text.isdigit():
        return evaluate(text, max_digits)
    return evaluate(Expression(text, _Parser(text, max_digits, math.inf).parse()), max_digits)


def evaluate(written: str | Expression, max_digits: int) -> mpz:
    """Compute the exact integer value, which may be zero or negative; raises ExpressionError."""
    expression = parse(written, max_digits) if isinstance(written, str) else written
    value = _compute(expression.root, expression.text)
    # num_digits is right or one too many.
    if value.num_digits(10) > max_digits and abs(value) >= mpz(10) ** max_digits:
        _too_large(expression.text, max_digits)
    return value


def evaluate_number(written: str | Expression, max_digits: int) -> mpz:
    """Compute the value of a number to factor, an integer above 1; raises ExpressionError."""
    expression = parse(written, max_digits) if isinstance(written, str) else written
    value = evaluate(expression, max_digits)
    _above_one(value, expression.text)
    return value


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _above_one(value: mpz | int, text: str) -> None:
    if value <= 1:
        subject = shorten(text) if text in ("0", "1") else f"{shorten(text)} is {shorten(decimal(mpz(value)))}; it"
        reason = "number_is_one" if value == 1 else "not_positive"
        raise ExpressionError(reason, f"{subject} is no number to factor; send an integer greater than 1")


def _too_large(text: str, max_digits: int) -> NoReturn:
    detail = f"{shorten(text)} is too large; numbers of at most {max_digits} digits are taken (MAX_DIGITS)"
    raise ExpressionError("number_too_large", detail)


def _too_long(text: str) -> NoReturn:
    detail = f"{shorten(text)} is too long for an expression; send at most {LONGEST_EXPRESSION} characters, or decimal"
    raise ExpressionError("number_too_large", detail)


def _too_costly(text: str) -> NoReturn:
    detail = f"{shorten(text)} takes too long to compute; send the number in decimal, or with fewer large powers"
    raise ExpressionError("number_too_large", detail)


def _malformed(text: str, problem: str) -> NoReturn:
    detail = f"{shorten(text)!r} {problem}; write a decimal number or an expression such as 2^1277-1"
    raise ExpressionError("malformed_number", detail)


def _not_an_integer(text: str, reason: str) -> NoReturn:
    detail = f"{shorten(text)} is not an integer: {reason}; every division should leave no remainder"
    raise ExpressionError("not_an_integer", detail)


def _literal(digits: str, text: str, max_digits: int) -> ExpressionNode:
    if len(digits) > max_digits:
        _too_large(text, max_digits)
    if digits[0] == "0" and len(digits) > 1:
        _malformed(text, "has a number that begins with a zero")
    if len(digits) <= EXACT_DIGITS:
        return _exact_node("digits", (), int(digits), digits)
    leading, rest = int(digits[:15]), len(digits) - 15
    return ExpressionNode("digits", text=digits, low=math.log10(leading) + rest, high=math.log10(leading + 1) + rest)


def _exact_node(operator: str, operands: tuple[ExpressionNode, ...], value: int, digits: str = "") -> ExpressionNode:
    low = math.log10(abs(value)) if value else -math.inf
    return ExpressionNode(operator, operands, digits, low, max(low, 0.0), value)


class _Parser:
    """Recursive descent over `text`; `token` is the next token, None at the end."""

    def __init__(self, text: str, max_digits: int, most_work: float) -> None:
        self.text = text
        self.max_digits = max_digits
        self.work_left = most_work  # digits of intermediate results
        self.position = 0
        self.depth = 0
        self.operations = 0
        self.token: str | None = None

    def parse(self) -> ExpressionNode:
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
        if self.depth > MAX_DEPTH:
            _malformed(self.text, f"is nested more than {MAX_DEPTH} levels deep")

    def _sum(self) -> ExpressionNode:
        node = self._product()
        while operator := self._take("+", "-"):
            right = self._product()
            node = self._node(operator, (node, right), *_sum_size(node, right))
        return node

    def _product(self) -> ExpressionNode:
        node = self._power()
        while operator := self._take("*", "/"):
            right = self._power()
            if operator == "*":
                low, high = node.low + right.low, node.high + right.high
            else:  # the evaluation refuses a divisor below 1 in size
                low, high = node.low - right.high, node.high - max(right.low, 0.0)
            node = self._node(operator, (node, right), low, max(high, 0.0))
        return node

    def _power(self) -> ExpressionNode:
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
        # The power 0 gives 1, but its base has to be an integer all the same.
        low, high = (base.low * exponent.exact, base.high * exponent.exact) if exponent.exact else (0.0, 0.0)
        return self._node("^", (base, exponent), low, high)

    def _postfix(self) -> ExpressionNode:
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
            step = _exact_node("digits", (), 1, "1")
        else:
            step = _literal(self.token, self.text, self.max_digits)
            if step.exact is None or not 0 < step.exact <= LARGEST_WORD:
                _malformed(self.text, f"has !{shorten(self.token)}; the step of a multifactorial is a small number")
            self._advance()
        return self._node("!", (node, step), *_factorial_size(node.exact, step.exact or 1))

    def _atom(self) -> ExpressionNode:
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

    def _node(self, operator: str, operands: tuple[ExpressionNode, ...], low: float, high: float) -> ExpressionNode:
        self.operations += 1
        if self.operations > MAX_OPERATIONS:
            _malformed(self.text, f"has more than {MAX_OPERATIONS} operations")
        if high > 2 * self.max_digits + 20:
            _too_large(self.text, self.max_digits)
        self.work_left -= max(high, 0.0)
        if self.work_left < 0:
            _too_costly(self.text)
        values = [operand.exact for operand in operands if operand.exact is not None]
        if high < EXACT_DIGITS and len(values) == len(operands):
            return _exact_node(operator, operands, int(_operate(operator, [mpz(value) for value in values], self.text)))
        return ExpressionNode(operator, operands, low=low, high=high)


def _sum_size(left: ExpressionNode, right: ExpressionNode) -> tuple[float, float]:
    """Return (low, high) of both the sum and the difference, as the signs of the operands are not known."""
    larger, smaller = (left, right) if left.high >= right.high else (right, left)
    high = larger.high + math.log1p(10 ** (smaller.high - larger.high)) / math.log(10) + 1e-9
    # If the smaller operand is at most half the larger one, at least half of the larger one remains.
    low = larger.low - LOG10_2 if larger.low - smaller.high > LOG10_2 else -math.inf
    return low, high


def _factorial_size(n: int, step: int) -> tuple[float, float]:
    """Return (low, high) of n!step. n! is the product of n!step, (n-1)!step, ..., `step` of them.

    None of these factors exceeds the next one by more than a factor of n.
    """
    log_factorial = math.lgamma(n + 1) / math.log(10)
    return log_factorial / step if n > step else 0.0, log_factorial / step + math.log10(max(n, 1))


def _primorial_size(n: int) -> tuple[float, float]:
    """Return (low, high) of n#: 0.84 n < sum of log p, primes p <= n, < 1.01624 n; the lower bound holds from 101 on.

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
        case "^":  # GMP takes exponents of a machine word; only the bases 0, 1 and -1 can have larger ones here
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


def _compute(node: ExpressionNode, text: str) -> mpz:
    # Chains of + and * lean to the left and can be long: a loop follows them, so recursion is only as deep as the text.
    chain = []
    while node.exact is None and node.operator != "digits":
        chain.append(node)
        node = node.operands[0]
    value = mpz(node.text) if node.exact is None else mpz(node.exact)
    for outer in reversed(chain):
        others = [_compute(operand, text) for operand in outer.operands[1:]]
        value = _operate(outer.operator, [value, *others], text)
    return value
