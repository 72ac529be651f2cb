"""A number's factorization as a tree: the pure arithmetic of recording and refining factors, no database.

A tree is the cofactor left and the nodes split off so far; a composite node has its own nodes beneath it. At all
times the number is the product of its leaves, with multiplicity, and the cofactor. Two steps change a tree:

- `refine(tree, f)` uses a divisor f of the number: every unfinished part L (the cofactor, each composite leaf) with
  1 < gcd(f, L) < L is split by it, and what comes out is used on the other parts in turn;
- `resolve(tree)` finishes what is new by itself: primality, perfect powers, composites of 45 digits or fewer.

What is left for later (large primality tests, large splits) stays in the tree as `is_prime=None` or a composite leaf.
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
    """A factor; `multiplicity` is how often it divides what it lies beneath, `is_prime` is None while nobody knows.

    `row_id` is its row in `factors`, None until it has one. `tested` keeps a new node from being tested twice.
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
        """Itself, or what it has been split into."""
        if not self.children:
            yield self
        for node in self.children:
            yield from node.leaves()


@dataclass(eq=False)
class Tree:
    """A number's factorization so far. `cofactor` is 1 when everything has been split off."""

    number: mpz
    cofactor: mpz
    cofactor_is_prime: bool | None
    children: list[FactorNode] = field(default_factory=list)
    cofactor_tested: bool = True

    def leaves(self) -> Iterator[FactorNode]:
        """Every node that has not been split."""
        for node in self.children:
            yield from node.leaves()

    def all_nodes(self) -> Iterator[tuple[FactorNode, FactorNode | None]]:
        """Every node with the one that it lies beneath, parents first."""
        todo: list[tuple[FactorNode, FactorNode | None]] = [(node, None) for node in self.children]
        while todo:
            node, parent = todo.pop(0)
            yield node, parent
            todo.extend((below, node) for below in node.children)

    @property
    def finished(self) -> bool:
        """Whether every part is known to be prime."""
        return (self.cofactor == 1 or self.cofactor_is_prime is True) and all(
            leaf.is_prime is True for leaf in self.leaves()
        )

    def product(self) -> mpz:
        """The product of the leaves, with multiplicity, and the cofactor: always the number."""

        def of(node: FactorNode) -> mpz:
            inner = node.value if not node.children else gmpy2.mpz(1)
            for below in node.children:
                inner *= of(below)
            return inner**node.multiplicity

        total = self.cofactor
        for node in self.children:
            total *= of(node)
        return total


def new_tree(number: mpz) -> Tree:
    """A number nothing is known of yet."""
    return Tree(number, number, None, cofactor_tested=False)


def refine(tree: Tree, divisor: mpz, origin: str = SPLIT) -> list[mpz]:
    """Split every unfinished part that `divisor` splits; returns the values that are new in the tree.

    `origin` marks the nodes that the divisor itself brings; what follows from them is a split.
    """
    new: list[mpz] = []
    pending = [(divisor, origin)]
    while pending:
        by, why = pending.pop(0)
        found = _split_cofactor(tree, by, why)
        for leaf in list(tree.leaves()):
            found += _split_leaf(leaf, by, why)
        new += found
        # Every new value may share a factor with any part, itself included: p*q and p*r split one another.
        pending += [(value, SPLIT) for value in found]
        if found:
            pending += [(by, why)]
    return new


def _split_cofactor(tree: Tree, by: mpz, origin: str) -> list[mpz]:
    if tree.cofactor == 1 or tree.cofactor_is_prime is True:
        return []
    common = _shared(by, tree.cofactor)
    if common == 1:
        return []
    count, rest = multiplicity(tree.cofactor, common)
    tree.cofactor, tree.cofactor_is_prime, tree.cofactor_tested = rest, None, False
    _add_node(tree.children, FactorNode(common, count, origin=origin))
    return [common] if rest == 1 else [common, rest]


def _split_leaf(leaf: FactorNode, by: mpz, origin: str) -> list[mpz]:
    if leaf.is_prime is True:
        return []
    common = _shared(by, leaf.value)
    if common == 1:
        return []
    count, rest = multiplicity(leaf.value, common)
    leaf.is_prime = False
    leaf.children = [FactorNode(common, count, origin=origin)]
    if rest == 1:
        return [common]
    leaf.children.append(FactorNode(rest))
    return [common, rest]


def _shared(by: mpz, part: mpz) -> mpz:
    """The divisor of `part`, not all of it, that it has in common with `by`; 1 if there is none.

    Of a multiple of the part the rest counts: q * p^2 splits q * p.
    """
    _, rest = multiplicity(by, part)
    return gmpy2.gcd(rest, part)


def _add_node(nodes: list[FactorNode], new: FactorNode) -> None:
    """A value that stands there already only becomes more frequent."""
    for node in nodes:
        if node.value == new.value:
            node.multiplicity += new.multiplicity
            return
    nodes.append(new)


def resolve(tree: Tree) -> list[mpz]:
    """Test what has not been tested and finish what is small; returns the values that are new in the tree.

    Costs at most a primality test of 2,000 digits and a split of 45 digits for each untested part, which is what may
    be done under a lock. Larger parts keep `is_prime=None` (untested) or stay composite leaves.
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
    """What is left is prime: it becomes a factor like the others. A prime number has no factor but itself."""
    if tree.cofactor == tree.number:
        return []
    last = tree.cofactor
    tree.cofactor, tree.cofactor_is_prime = mpz(1), False
    _add_node(tree.children, FactorNode(last, 1, True, origin=COFACTOR, tested=True))
    return [last]


def split_composite(value: mpz) -> list[tuple[mpz, int, bool | None]]:
    """(value, multiplicity, is prime) of the parts of a composite that can be split at once; [] if it cannot be."""
    if digit_count(value) <= SPLIT_AT_ONCE_DIGITS:
        return [(prime, count, True) for prime, count in sorted(factorize(value).items())]
    power = perfect_power(value)
    return [(power[0], power[1], None)] if power else []


def cofactor_is_prime(tree: Tree, prime: bool) -> list[mpz]:
    """Record the outcome of a primality test of the cofactor; returns the values that are new in the tree."""
    tree.cofactor_is_prime, tree.cofactor_tested = prime, False
    return _resolve_cofactor(tree)
