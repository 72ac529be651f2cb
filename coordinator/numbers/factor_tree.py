"""A number's factorization as a tree: the pure arithmetic of recording and refining factors, no database.

A tree has the cofactor and the factors found so far as nodes; the factors of a composite node are its children. The
number is always the product of the leaves, with multiplicity, and the cofactor. Two functions change a tree:

- `refine(tree, f)` uses a divisor f of the number: it splits every unfinished part L (the cofactor, each composite
  leaf) with 1 < gcd(f, L) < L, and then uses the new parts on the other parts in the same way;
- `resolve(tree, budget)` works on the new parts: it tests primality, and splits perfect powers and composites of 45
  digits or fewer.

Large primality tests and large splits, and all that no longer fits into the budget, are left to jobs: such a part has
`is_prime=None`, or is a composite leaf.

The unfinished parts have no common divisors, but two may be equal. So `refine` tries a value that is new only on the
parts that are new with it, and a number with a thousand factors is divided in a second.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import gmpy2
from gmpy2 import mpz

from coordinator.numbers.arithmetic import (
    PRIMALITY_AT_ONCE_DIGITS,
    SPLIT_AT_ONCE_DIGITS,
    digit_count,
    factorize,
    is_probable_prime,
    multiplicity,
    perfect_power,
)
from coordinator.numbers.budget import Budget, primality_seconds, split_seconds, unlimited

SUBMITTED, KNOWN, SPLIT, COFACTOR = "submitted", "known", "split", "cofactor"


@dataclass(eq=False)
class FactorNode:
    """A factor. `multiplicity` is how often it divides its parent; `is_prime` is None while that is unknown.

    `row_id` is the id of its row in `factors`, None until it has one. `tested`: `resolve` has been at this node.
    """

    value: mpz
    multiplicity: int = 1
    is_prime: bool | None = None
    origin: str = SPLIT
    row_id: int | None = None
    child_id: int | None = None
    tested: bool = False
    children: list["FactorNode"] = field(default_factory=list)

    def leaves(self) -> Iterator["FactorNode"]:
        """Yield the node itself, or the leaves among its descendants."""
        # Trees can be deeper than Python's recursion: each factor found on a part goes one level down.
        todo = [self]
        while todo:
            node = todo.pop()
            if not node.children:
                yield node
            todo += reversed(node.children)


@dataclass(eq=False)
class Tree:
    """A number's factorization so far. `cofactor` is 1 if every factor is a node.

    `added` are the nodes that `refine` and `resolve` have added, each with its parent (None at the top).
    """

    number: mpz
    cofactor: mpz
    cofactor_is_prime: bool | None
    children: list[FactorNode] = field(default_factory=list)
    cofactor_tested: bool = True
    added: list[tuple[FactorNode, FactorNode | None]] = field(default_factory=list)
    _known: tuple[mpz, mpz] = (mpz(0), mpz(0))

    def leaves(self) -> Iterator[FactorNode]:
        """Yield every node without children."""
        for node in self.children:
            yield from node.leaves()

    def all_nodes(self) -> Iterator[tuple[FactorNode, FactorNode | None]]:
        """Yield every node with its parent (None at the top), parents first."""
        todo: deque[tuple[FactorNode, FactorNode | None]] = deque((node, None) for node in self.children)
        while todo:
            node, parent = todo.popleft()
            yield node, parent
            todo.extend((child, node) for child in node.children)

    def known_part(self) -> mpz:
        """Return the product of the leaves, with multiplicity."""
        if self._known[0] != self.cofactor:
            self._known = self.cofactor, self.number // self.cofactor
        return self._known[1]

    @property
    def finished(self) -> bool:
        """Whether every part is known to be prime."""
        return (self.cofactor == 1 or self.cofactor_is_prime is True) and all(
            leaf.is_prime is True for leaf in self.leaves()
        )

    def product(self) -> mpz:
        """The product of the leaves, with multiplicity, and the cofactor; it equals `number`."""

        total = self.cofactor
        todo = [(node, node.multiplicity) for node in self.children]
        while todo:
            node, count = todo.pop()
            if not node.children:
                total *= node.value**count
            todo += [(child, count * child.multiplicity) for child in node.children]
        return total


def new_tree(number: mpz) -> Tree:
    """The tree of a number without known factors."""
    return Tree(number, number, None, cofactor_tested=False)


def refine(tree: Tree, divisor: mpz, origin: str = SPLIT) -> list[mpz]:
    """Split every unfinished part that `divisor` splits; returns the values that are new in the tree.

    Nodes that come from the divisor itself get `origin`; nodes that follow from those get SPLIT.
    """
    new: list[mpz] = []
    pending = deque([(divisor, origin)])
    # Most divisors share nothing with what is known, and one division for all leaves shows that.
    leaves = list(tree.leaves()) if gmpy2.gcd(divisor, tree.known_part()) > 1 else []
    fresh: list[FactorNode] = []
    while pending:
        divisor, origin = pending.popleft()
        before = len(tree.added)
        found = _split_cofactor(tree, divisor, origin)
        for leaf in leaves:
            found += _split_leaf(tree, leaf, divisor, origin)
        new += found
        # New values may share factors with one another: p*q and p*r split each other.
        pending += [(value, SPLIT) for value in found]
        if found:
            pending.append((divisor, origin))
        fresh += [node for node, _ in tree.added[before:]]
        leaves = [node for node in fresh if not node.children]
    return new


def _split_cofactor(tree: Tree, divisor: mpz, origin: str) -> list[mpz]:
    if tree.cofactor == 1 or tree.cofactor_is_prime is True:
        return []
    common = _common_divisor(divisor, tree.cofactor)
    if common == 1:
        return []
    count, rest = multiplicity(tree.cofactor, common)
    tree.cofactor, tree.cofactor_is_prime, tree.cofactor_tested = rest, None, False
    _add_node(tree, FactorNode(common, count, origin=origin))
    return [common] if rest == 1 else [common, rest]


def _split_leaf(tree: Tree, leaf: FactorNode, divisor: mpz, origin: str) -> list[mpz]:
    if leaf.is_prime is True:
        return []
    common = _common_divisor(divisor, leaf.value)
    if common == 1:
        return []
    count, rest = multiplicity(leaf.value, common)
    leaf.is_prime = False
    _add_children(tree, leaf, [FactorNode(common, count, origin=origin)])
    if rest == 1:
        return [common]
    _add_children(tree, leaf, [FactorNode(rest)])
    return [common, rest]


def _common_divisor(divisor: mpz, part: mpz) -> mpz:
    """A proper divisor of `part` that `divisor` shares with it; 1 if there is none.

    If `divisor` is a multiple of the part, the quotient is used: q * p^2 splits q * p.
    """
    _, rest = multiplicity(divisor, part)
    return gmpy2.gcd(rest, part)


def _add_node(tree: Tree, new: FactorNode) -> None:
    """Append a node at the top, or add its multiplicity to an equal one."""
    for node in tree.children:
        if node.value == new.value:
            node.multiplicity += new.multiplicity
            return
    tree.children.append(new)
    tree.added.append((new, None))


def _add_children(tree: Tree, leaf: FactorNode, children: list[FactorNode]) -> None:
    leaf.children += children
    tree.added += [(child, leaf) for child in children]


def resolve(tree: Tree, budget: Budget | None = None) -> list[mpz]:
    """Test the untested parts and split the small ones; returns the values that are new in the tree.

    Each untested part costs at most a primality test of 2,000 digits and a split of 45 digits. Larger parts, and those
    that do not fit into `budget` (None: no limit), keep `is_prime=None` or stay composite leaves.
    """
    budget = budget or unlimited()
    new = _resolve_cofactor(tree, budget)
    todo = [leaf for leaf in tree.leaves() if not leaf.tested]
    while todo:
        leaf = todo.pop()
        leaf.tested = True
        if leaf.is_prime is None and _is_testable(leaf.value, budget):
            with budget.pays():
                leaf.is_prime = is_probable_prime(leaf.value)
        if leaf.is_prime is False:
            parts = [FactorNode(value, count, prime) for value, count, prime in split_composite(leaf.value, budget)]
            _add_children(tree, leaf, parts)
            new += [node.value for node in parts]
            todo += parts
    return new


def _is_testable(value: mpz, budget: Budget) -> bool:
    """Return whether the primality of `value` is tested at once."""
    digits = digit_count(value)
    return digits <= PRIMALITY_AT_ONCE_DIGITS and budget.allows(primality_seconds(digits))


def _resolve_cofactor(tree: Tree, budget: Budget) -> list[mpz]:
    if tree.cofactor == 1 or tree.cofactor_tested:
        return []
    if tree.cofactor_is_prime is None:
        # A composite cofactor of 45 digits is split at once, so it is only tested if there is time for that, too.
        if not (_is_testable(tree.cofactor, budget) and _is_affordable(tree.cofactor, budget)):
            return []
        with budget.pays():
            tree.cofactor_is_prime = is_probable_prime(tree.cofactor)
    tree.cofactor_tested = True
    if tree.cofactor_is_prime is True:
        return _take_prime_cofactor(tree)
    with budget.pays():
        parts = split_composite(tree.cofactor)
    if parts:
        tree.cofactor, tree.cofactor_is_prime = mpz(1), False
        for value, count, prime in parts:
            _add_node(tree, FactorNode(value, count, prime, origin=SPLIT))
    return [value for value, _, _ in parts]


def _take_prime_cofactor(tree: Tree) -> list[mpz]:
    """Make a prime cofactor a node like the other factors, unless the number itself is prime."""
    if tree.cofactor == tree.number:
        return []
    last = tree.cofactor
    tree.cofactor, tree.cofactor_is_prime = mpz(1), False
    _add_node(tree, FactorNode(last, 1, True, origin=COFACTOR, tested=True))
    return [last]


def _is_affordable(value: mpz, budget: Budget) -> bool:
    """Return whether `value` needs no split at once, or one that fits into the budget."""
    digits = digit_count(value)
    return digits > SPLIT_AT_ONCE_DIGITS or budget.allows(split_seconds(digits))


def split_composite(value: mpz, budget: Budget | None = None) -> list[tuple[mpz, int, bool | None]]:
    """The parts of a composite as (value, multiplicity, is prime); [] if splitting it takes a job or curves."""
    budget = budget or unlimited()
    if not _is_affordable(value, budget):
        return []
    with budget.pays():
        if digit_count(value) <= SPLIT_AT_ONCE_DIGITS:
            return [(prime, count, True) for prime, count in sorted(factorize(value).items())]
        power = perfect_power(value)
        return [(power[0], power[1], None)] if power else []


def cofactor_is_prime(tree: Tree, prime: bool, budget: Budget | None = None) -> list[mpz]:
    """Record the outcome of a primality test of the cofactor; returns the values that are new in the tree."""
    tree.cofactor_is_prime, tree.cofactor_tested = prime, False
    return _resolve_cofactor(tree, budget or unlimited())
