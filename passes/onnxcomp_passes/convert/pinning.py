"""What a user wants dimensions to be, checked against what inputs are declared with."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnxcomp.errors import UserError, quoted
from onnxcomp.ir.model import shape_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from onnxcomp.ir import ir
    from onnxcomp.signature import Dim

# A symbol such as "?" or "" stands for several sizes in real files; a name is meant as one size.
_SYMBOL = re.compile(r"[A-Za-z_]\w*")
_KEPT = frozenset({"?", "*", ""})
_FORMS = "write name:1,3,224,224 (? leaves a dimension open) or symbol=1"


@dataclass
class Pins:
    """Sizes that open dimensions get.

    Attributes:
        inputs: The inputs by name.
        symbols: Sizes of symbols, which hold wherever these occur.
        places: Sizes of dimensions that have no symbol of their own, by input and axis.
        ranks: Shapes for inputs that are declared without any.
    """

    inputs: dict[str, ir.Value]
    symbols: dict[str, int] = field(default_factory=dict)
    places: dict[tuple[str, int], int] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    _said_by: dict[str, str] = field(default_factory=dict)

    def read(self, text: str) -> None:
        """Reads `name:1,3,?,224` or `symbol=1`.

        Raises:
            UserError: If it is not understood or does not fit the inputs.
        """
        name, colon, sizes = text.rpartition(":")
        if colon:
            self._shape(name, [part.strip() for part in sizes.split(",")] if sizes.strip() else [])
            return
        symbol, equals, number = text.partition("=")
        if not equals:
            raise UserError(f"shape {quoted(text)} is not understood", hint=_FORMS)
        symbol = symbol.strip()
        declared = [dim for dims in self._declared().values() for dim in dims or ()]
        known = sorted({dim for dim in declared if isinstance(dim, str) and _named(dim)})
        if symbol not in known:
            raise UserError(
                f"no input has a dimension {quoted(symbol)}",
                hint=_choices("symbols", symbol, known),
            )
        self._set_symbol(symbol, _number(number.strip(), text), "=")

    def _shape(self, name: str, sizes: Sequence[str]) -> None:
        if name not in self.inputs:
            raise UserError(
                f"the model has no input {quoted(name)}",
                hint=_choices("inputs", name, list(self.inputs)),
            )
        declared = self._declared()[name]
        if declared is None:
            self.ranks[name] = len(sizes)
            declared = (None,) * len(sizes)
        if len(declared) != len(sizes):
            raise UserError(
                f"input {quoted(name)} has {len(declared)} dimensions, not {len(sizes)}",
                hint=f"it is declared as {_shown(declared)}",
            )
        for axis, (dim, size) in enumerate(zip(declared, sizes, strict=True)):
            self._dimension(name, axis, dim, size)

    def _dimension(self, name: str, axis: int, dim: Dim, size: str) -> None:
        if size in _KEPT or size == dim:
            return
        if not size.isdigit() and _SYMBOL.fullmatch(size):
            is_now = "open" if dim is None else dim
            raise UserError(
                f"dimension {axis} of input {quoted(name)} is {is_now}, not {size}",
                hint="give a number, or ? to leave it as it is",
            )
        self.pin(name, axis, dim, _number(size, f"{name}:…{size}…"))

    def pin(self, name: str, axis: int, dim: Dim, number: int) -> None:
        """Gives one dimension of an input a size.

        Raises:
            UserError: If it has another one already.
        """
        if isinstance(dim, int):
            if dim != number:
                raise UserError(
                    f"dimension {axis} of input {quoted(name)} is fixed at {dim} and cannot be {number}",
                    hint="only open dimensions can be chosen; export the model again for others",
                )
        elif _named(dim) and dim is not None:
            self._set_symbol(dim, number, name)
        elif self.places.setdefault((name, axis), number) != number:
            raise UserError(f"dimension {axis} of input {quoted(name)} was given two sizes")

    def _set_symbol(self, symbol: str, number: int, said_by: str) -> None:
        known = self.symbols.setdefault(symbol, number)
        first = self._said_by.setdefault(symbol, said_by)
        if known != number:
            users = [name for name, dims in self._declared().items() if symbol in (dims or ())]
            raise UserError(
                f"{quoted(symbol)} cannot be both {known} ({first}) and {number} ({said_by})",
                hint=f"{', '.join(map(quoted, users))} share this dimension: give them the same size",
            )

    def pin_batch(self, number: int) -> list[str]:
        """Gives the first dimension of every input a size, where it is open.

        Returns:
            Inputs whose first dimension is fixed at something else.

        Raises:
            UserError: If no input has such a dimension.
        """
        others, met = [], False
        for name, dims in self._declared().items():
            if not dims:
                continue
            if isinstance(dims[0], int) and dims[0] != number:
                others.append(name)
                continue
            self.pin(name, 0, dims[0], number)
            met = True
        if not met:
            fixed = "; ".join(
                f"{quoted(n)} is {_shown(d or ())}" for n, d in self._declared().items()
            )
            raise UserError("no input has an open first dimension to be the batch", hint=fixed)
        return others

    def _declared(self) -> dict[str, tuple[Dim, ...] | None]:
        return {name: open_shape(value) for name, value in self.inputs.items()}

    def applied(self, name: str, dims: Iterable[Dim]) -> tuple[Dim, ...]:
        """Returns a shape with the sizes in it; `name` is that of an input, or empty."""
        return tuple(
            self.places.get(
                (name, axis), self.symbols.get(dim, dim) if isinstance(dim, str) else dim
            )
            for axis, dim in enumerate(dims)
        )


def open_shape(value: ir.Value) -> tuple[Dim, ...] | None:
    """Returns a declared shape; what is negative counts as open."""
    shape = shape_of(value.shape)
    if shape is None:
        return None
    return tuple(None if isinstance(dim, int) and dim < 0 else dim for dim in shape)


def _named(dim: Dim) -> bool:
    return isinstance(dim, str) and _SYMBOL.fullmatch(dim) is not None


def _number(text: str, whole: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 2**31:
        raise UserError(f"{quoted(text)} in {quoted(whole)} is no size", hint=_FORMS)
    return int(text)


def _shown(dims: Iterable[Dim]) -> str:
    return ",".join("?" if dim is None or dim == "" else str(dim) for dim in dims) or "a scalar"


def _choices(what: str, wanted: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(wanted, known, 1)
    listed = ", ".join(map(quoted, known)) or "none"
    return f"did you mean {quoted(near[0])}? {what}: {listed}" if near else f"{what}: {listed}"
