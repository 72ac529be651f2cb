"""A number's factorization as a tree: the pure arithmetic of recording and refining factors, no database.

A tree has the cofactor and the factors found so far as nodes; the factors of a composite node are its children. The
number is always the product of the leaves, with multiplicity, and the cofactor. Two functions change a tree:

- `refine(tree, f)` uses a divisor f of the number: it splits every unfinished part L (the cofactor, each composite
  leaf) with 1 < gcd(f, L) < L, and then uses the new parts on the other parts in the same way;
- `resolve(tree)` works on the new parts: it tests primality, and splits perfect powers and composites of 45 digits or
  fewer.

Large primality tests and large splits are left to jobs: such a part has `is_prime=None`, or is a composite leaf.
"""

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
        if not self.children:
            yield self
        for node in self.children:
            yield from node.leaves()


@dataclass(eq=False)
class Tree:
    """A number's factorization so far. `cofactor` is 1 if every factor is a node."""

    number: mpz
    cofactor: mpz
    cofactor_is_prime: bool | None
    children: list[FactorNode] = field(default_factory=list)
    cofactor_tested: bool = True

    def leaves(self) -> Iterator[FactorNode]:
        """Yield every node without children."""
        for node in self.children:
            yield from node.leaves()

    def all_nodes(self) -> Iterator[tuple[FactorNode, FactorNode | None]]:
        """Yield every node with its parent (None at the top), parents first."""
        todo: list[tuple[FactorNode, FactorNode | None]] = [(node, None) for node in self.children]
        while todo:
            node, parent = todo.pop(0)
            yield node, parent
            todo.extend((child, node) for child in node.children)

    @property
    def finished(self) -> bool:
        """Whether every part is known to be prime."""
        return (self.cofactor == 1 or self.cofactor_is_prime is True) and all(
            leaf.is_prime is True for leaf in self.leaves()
        )

    def product(self) -> mpz:
        """The product of the leaves, with multiplicity, and the cofactor; it equals `number`."""

        def node_product(node: FactorNode) -> mpz:
            inner = node.value if not node.children else mpz(1)
            for child in node.children:
                inner *= node_product(child)
            return inner**node.multiplicity

        total = self.cofactor
        for node in self.children:
            total *= node_product(node)
        return total


def new_tree(number: mpz) -> Tree:
    """The tree of a number without known factors."""
    return Tree(number, number, None, cofactor_tested=False)


def refine(tree: Tree, divisor: mpz, origin: str = SPLIT) -> list[mpz]:
    """Split every unfinished part that `divisor` splits; returns the values that are new in the tree.

    Nodes that come from the divisor itself get `origin`; nodes that follow from those get SPLIT.
    """
    new: list[mpz] = []
    pending = [(divisor, origin)]
    while pending:
        divisor, origin = pending.pop(0)
        found = _split_cofactor(tree, divisor, origin)
        for leaf in list(tree.leaves()):
            found += _split_leaf(leaf, divisor, origin)
        new += found
        # A new value may share a factor with any part, also with another new one: p*q and p*r split one another.
        pending += [(value, SPLIT) for value in found]
        if found:
            pending += [(divisor, origin)]
    return new


def _split_cofactor(tree: Tree, divisor: mpz, origin: str) -> list[mpz]:
    if tree.cofactor == 1 or tree.cofactor_is_prime is True:
        return []
    common = _common_divisor(divisor, tree.cofactor)
    if common == 1:
        return []
    count, rest = multiplicity(tree.cofactor, common)
    tree.cofactor, tree.cofactor_is_prime, tree.cofactor_tested = rest, None, False
    _add_node(tree.children, FactorNode(common, count, origin=origin))
    return [common] if rest == 1 else [common, rest]


def _split_leaf(leaf: FactorNode, divisor: mpz, origin: str) -> list[mpz]:
    if leaf.is_prime is True:
        return []
    common = _common_divisor(divisor, leaf.value)
    if common == 1:
        return []
    count, rest = multiplicity(leaf.value, common)
    leaf.is_prime = False
    leaf.children = [FactorNode(common, count, origin=origin)]
    if rest == 1:
        return [common]
    leaf.children.append(FactorNode(rest))
    return [common, rest]


def _common_divisor(divisor: mpz, part: mpz) -> mpz:
    """A proper divisor of `part` that `divisor` shares with it; 1 if there is none.

    If `divisor` is a multiple of the part, the quotient is used: q * p^2 splits q * p.
    """
    _, rest = multiplicity(divisor, part)
    return gmpy2.gcd(rest, part)


def _add_node(nodes: list[FactorNode], new: FactorNode) -> None:
    """Append the node, or add its multiplicity to an equal one."""
    for node in nodes:
        if node.value == new.value:
            node.multiplicity += new.multiplicity
            return
    nodes.append(new)


def resolve(tree: Tree) -> list[mpz]:
    """Test the untested parts and split the small ones; returns the values that are new in the tree.

    Each untested part costs at most a primality test of 2,000 digits and a split of 45 digits, which is short enough
    for a transaction that holds locks. Larger parts keep `is_prime=None`, or stay composite leaves.
    """
    new = _resolve_cofactor(tree)
    todo = [leaf for leaf in tree.leaves() if not leaf.tested]
    while todo:
        leaf = todo.pop()
        leaf.tested = True
        if leaf.is_prime is None and digit_count(leaf.value) <= PRIMALITY_AT_ONCE_DIGITS:
            leaf.is_prime = is_probable_prime(leaf.value)
        if leaf.is_prime is False:
            leaf.children = [FactorNode(value, count, prime) for value, count, prime in split_composite(leaf.value)]
            new += [node.value for node in leaf.children]
            todo += leaf.children
    return new


def _resolve_cofactor(tree: Tree) -> list[mpz]:
    if tree.cofactor == 1 or tree.cofactor_tested:
        return []
    tree.cofactor_tested = True
    if tree.cofactor_is_prime is None and digit_count(tree.cofactor) <= PRIMALITY_AT_ONCE_DIGITS:
        tree.cofactor_is_prime = is_probable_prime(tree.cofactor)
    if tree.cofactor_is_prime is True:
        return _take_prime_cofactor(tree)
    if tree.cofactor_is_prime is None:
        return []
    parts = split_composite(tree.cofactor)
    if parts:
        tree.cofactor, tree.cofactor_is_prime = mpz(1), False
        for value, count, prime in parts:
            _add_node(tree.children, FactorNode(value, count, prime, origin=SPLIT))
    return [value for value, _, _ in parts]


def _take_prime_cofactor(tree: Tree) -> list[mpz]:
    """Make a prime cofactor a node like the other factors, unless the number itself is prime."""
    if tree.cofactor == tree.number:
        return []
    last = tree.cofactor
    tree.cofactor, tree.cofactor_is_prime = mpz(1), False
    _add_node(tree.children, FactorNode(last, 1, True, origin=COFACTOR, tested=True))
    return [last]


def split_composite(value: mpz) -> list[tuple[mpz, int, bool | None]]:
    """The parts of a composite as (value, multiplicity, is prime); [] if splitting it takes a job or curves."""
    if digit_count(value) <= SPLIT_AT_ONCE_DIGITS:
        return [(prime, count, True) for prime, count in sorted(factorize(value).items())]
    power = perfect_power(value)
    return [(power[0], power[1], None)] if power else []


def cofactor_is_prime(tree: Tree, prime: bool) -> list[mpz]:
    """Record the outcome of a primality test of the cofactor; returns the values that are new in the tree."""
    tree.cofactor_is_prime, tree.cofactor_tested = prime, False
    return _resolve_cofactor(tree)
