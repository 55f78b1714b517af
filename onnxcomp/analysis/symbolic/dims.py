"""Arithmetic on dimensions in a normal form, so that equal expressions are recognised as equal.

A dimension that is not known is a polynomial with integer coefficients over atoms. An atom is the
size of some tensor (it has a name and is never negative) or an operation that polynomials cannot
express: a quotient, a maximum, what two sizes broadcast to. Equal normal forms are equal in every
run; forms that differ may still be equal (two sizes can both be 1), so nothing follows from that.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

# Larger expressions say nothing that anybody could use.
_MAX_TERMS = 12
_MAX_DEGREE = 8
_MAX_TEXT = 400
_MAX_COEFFICIENT = 1 << 62

Item: TypeAlias = "int | Dim | None"
Monomial: TypeAlias = "tuple[Atom, ...]"


@dataclass(frozen=True, slots=True)
class Atom:
    """Something that polynomials are made of.

    Attributes:
        text: What it is; atoms with equal texts are equal.
        nonnegative: Whether it can never be negative.
        operator: "" for the size of a tensor, else what is done to the operands.
        operands: What it is done to.
    """

    text: str
    nonnegative: bool = field(default=True, compare=False)
    operator: str = field(default="", compare=False)
    operands: tuple[int | Dim, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Dim:
    """A polynomial that is no number: at least one term has an atom.

    Attributes:
        terms: Products of atoms with their factors, in order.
    """

    terms: tuple[tuple[Monomial, int], ...]

    @property
    def text(self) -> str:
        """The expression as people write it; equal for equal expressions only."""
        return " + ".join(_term_text(atoms, factor) for atoms, factor in self.terms)


def _term_text(atoms: Monomial, factor: int) -> str:
    parts = [str(factor)] if factor != 1 or not atoms else []
    return "*".join([*parts, *(atom.text for atom in atoms)])


def size(name: str) -> Dim:
    """Returns the dimension of that name: not known, never negative."""
    return Dim((((Atom(name),), 1),))


def _made(counts: Counter[Monomial]) -> Item:
    """The normal form of a sum, None when it is too large to be of use."""
    terms = [(atoms, factor) for atoms, factor in counts.items() if factor]
    if not terms:
        return 0
    if len(terms) == 1 and not terms[0][0]:
        return terms[0][1]
    if len(terms) > _MAX_TERMS or any(
        len(atoms) > _MAX_DEGREE or abs(factor) > _MAX_COEFFICIENT for atoms, factor in terms
    ):
        return None
    return Dim(tuple(sorted(terms, key=lambda term: [atom.text for atom in term[0]])))


def _terms(item: int | Dim) -> tuple[tuple[Monomial, int], ...]:
    return item.terms if isinstance(item, Dim) else (((), item),)


def add(left: Item, right: Item) -> Item:
    """Returns the sum."""
    if left is None or right is None:
        return None
    if isinstance(left, int) and isinstance(right, int):
        return left + right
    counts: Counter[Monomial] = Counter()
    for atoms, factor in (*_terms(left), *_terms(right)):
        counts[atoms] += factor
    return _made(counts)


def negate(item: Item) -> Item:
    """Returns the item with the other sign."""
    return multiply(item, -1)


def subtract(left: Item, right: Item) -> Item:
    """Returns the difference."""
    return add(left, negate(right))


def multiply(left: Item, right: Item) -> Item:
    """Returns the product; nothing at all times 0 is 0."""
    if 0 in (left, right):
        return 0
    if left is None or right is None:
        return None
    if isinstance(left, int) and isinstance(right, int):
        return left * right
    counts: Counter[Monomial] = Counter()
    for first, one in _terms(left):
        for second, other in _terms(right):
            atoms = tuple(sorted((*first, *second), key=lambda atom: atom.text))
            counts[atoms] += one * other
    return _made(counts)


def product(items: Iterable[Item]) -> Item:
    """Returns the product of many."""
    result: Item = 1
    for item in items:
        result = multiply(result, item)
    return result


def is_nonnegative(item: Item) -> bool:
    """Whether an item is proven to be 0 or more."""
    if isinstance(item, Dim):
        return all(
            factor > 0 and all(atom.nonnegative for atom in atoms) for atoms, factor in item.terms
        )
    return item is not None and item >= 0


def is_positive(item: Item) -> bool:
    """Whether an item is proven to be 1 or more."""
    return item is not None and is_nonnegative(subtract(item, 1))


def exact_quotient(left: Item, right: Item) -> Item:
    """Returns left / right if right, as a product, is in every term of left; else None.

    Right for every run in which the divisor is not 0.
    """
    if left is None or right is None or right == 0:
        return None
    if len(_terms(right)) != 1:
        return 1 if left == right else None
    ((divisor, number),) = _terms(right)
    counts: Counter[Monomial] = Counter()
    for atoms, factor in _terms(left):
        rest = Counter(atoms)
        rest.subtract(divisor)
        if factor % number or any(count < 0 for count in rest.values()):
            return None
        counts[tuple(sorted(rest.elements(), key=lambda atom: atom.text))] += factor // number
    return _made(counts)


def quotient(left: Item, right: Item) -> Item:
    """Returns left / right rounded towards zero, as ONNX divides integers."""
    if left is None or right is None or right == 0:
        return None
    if isinstance(left, int) and isinstance(right, int):
        found = abs(left) // abs(right)
        return found if (left < 0) == (right < 0) else -found
    exact = exact_quotient(left, right)
    if exact is not None:
        return exact
    signless = is_nonnegative(left) and is_nonnegative(right)
    return _operation("div", (left, right), nonnegative=signless)


def maximum(left: Item, right: Item) -> Item:
    """Returns the larger one."""
    return _extreme("max", left, right)


def minimum(left: Item, right: Item) -> Item:
    """Returns the smaller one."""
    return _extreme("min", left, right)


def _extreme(operator: str, left: Item, right: Item) -> Item:
    if left is None or right is None:
        return None
    for one, other in ((left, right), (right, left)):
        if is_nonnegative(subtract(one, other)):
            return one if operator == "max" else other
    signs = [is_nonnegative(left), is_nonnegative(right)]
    nonnegative = any(signs) if operator == "max" else all(signs)
    return _operation(operator, _flat(operator, (left, right)), nonnegative=nonnegative)


def join(left: Item, right: Item) -> Item:
    """Returns what two sizes broadcast to, in every run that does not fail.

    A 1 gives way to whatever the other is, and a number other than 1 wins over whatever is unknown.
    """
    for one, other in ((left, right), (right, left)):
        if one == 1:
            return other
        if isinstance(one, int):
            return one
    if left is None or right is None:
        return None
    if left == right:
        return left
    return _operation("join", _flat("join", (left, right)), nonnegative=True)


def joined(items: Iterable[Item]) -> Item:
    """Returns what many sizes broadcast to."""
    result: Item = 1
    for item in items:
        result = join(result, item)
    return result


def copied(item: Item, here: Item) -> Item:
    """Returns the size that a Reshape makes of an element of its target where 0 copies `here`.

    Args:
        item: The element.
        here: Size in the same place of what is reshaped, None when that is not known.
    """
    if item == 0:
        return here
    if item is None or is_positive(item) or vanishes_with(here, item):
        return item
    if here is None or isinstance(item, int):
        return None
    nonnegative = is_nonnegative(item) and is_nonnegative(here)
    return _operation("copy", (item, here), nonnegative=nonnegative)


def vanishes_with(item: Item, other: Item) -> bool:
    """Whether `item` is proven to be 0 whenever `other` is."""
    if item is None or not isinstance(other, Dim) or len(other.terms) != 1:
        return item == other and item is not None
    if isinstance(item, int):
        return item == 0
    needed = set(other.terms[0][0])
    return all(
        needed <= set(atoms) or any(_copy_vanishes(atom, other) for atom in atoms)
        for atoms, _ in item.terms
    )


def _copy_vanishes(atom: Atom, other: Dim) -> bool:
    return atom.operator == "copy" and all(vanishes_with(part, other) for part in atom.operands)


def _flat(operator: str, operands: Iterable[int | Dim]) -> tuple[int | Dim, ...]:
    """Operands of an operation without order in which those of inner ones are taken in."""
    found: dict[str, int | Dim] = {}
    for operand in operands:
        atom = lone_atom(operand)
        inner = atom.operands if atom is not None and atom.operator == operator else (operand,)
        found.update((text_of(part), part) for part in inner)
    return tuple(found[text] for text in sorted(found))


def lone_atom(item: Item) -> Atom | None:
    """Returns the atom that a dimension consists of, None when there is more to it."""
    if isinstance(item, Dim) and len(item.terms) == 1 and item.terms[0][1] == 1:
        atoms = item.terms[0][0]
        return atoms[0] if len(atoms) == 1 else None
    return None


def text_of(item: int | Dim) -> str:
    """Returns an item as text."""
    return item.text if isinstance(item, Dim) else str(item)


def _operation(operator: str, operands: tuple[int | Dim, ...], *, nonnegative: bool) -> Item:
    text = f"{operator}({', '.join(map(text_of, operands))})"
    if len(text) > _MAX_TEXT:
        return None
    return Dim((((Atom(text, nonnegative, operator, operands),), 1),))
