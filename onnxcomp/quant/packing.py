"""Numbers of one to eight bits, packed into bytes without a gap.

A number of `b` bits is cut into pieces of 1, 2, 4 or 8 bits, as `b` has them in binary (7 = 4 + 2 + 1), so
that each piece fills its bytes completely and shifts of bytes alone take it apart again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_BITS = 8
# Numbers that share bytes when a piece has one bit.
_TOGETHER = 8


@dataclass(frozen=True, eq=False)
class Piece:
    """Some bits of every number.

    Attributes:
        data: The bytes, `(ceil(count / per_byte),)`; the first number of a byte has its lowest bits.
        bits: How many bits of a number: 1, 2, 4 or 8.
        shift: Their place in the number.
    """

    data: NDArray[np.uint8]
    bits: int
    shift: int

    @property
    def per_byte(self) -> int:
        """Numbers in one byte."""
        return 8 // self.bits


def packed_bytes(count: int, bits: int) -> int:
    """Returns the bytes of `count` packed numbers."""
    return bits * (-(-count // _TOGETHER))


def pack(numbers: NDArray[Any], bits: int) -> tuple[Piece, ...]:
    """Packs numbers, highest bits first.

    Args:
        numbers: Whole numbers from 0 to `2**bits - 1`, of any shape.
        bits: Bits of each, 1 to 8.

    Raises:
        ValueError: If a number does not fit.
    """
    if not 1 <= bits <= MOST_BITS:
        raise ValueError(f"numbers of {bits} bits")
    flat = numbers.reshape(-1)
    if flat.size and (int(flat.max()) >> bits or int(flat.min()) < 0):
        raise ValueError(f"numbers up to {flat.max()} do not fit {bits} bits")
    padded = np.zeros(-(-flat.size // _TOGETHER) * _TOGETHER, np.uint8)
    padded[: flat.size] = flat
    pieces, left = [], bits
    for width in (8, 4, 2, 1):
        if bits & width:
            left -= width
            pieces.append(Piece(_packed((padded >> left) & ((1 << width) - 1), width), width, left))
    return tuple(pieces)


def _packed(numbers: NDArray[Any], width: int) -> NDArray[np.uint8]:
    each = 8 // width
    data = np.zeros(numbers.size // each, np.uint8)
    for place in range(each):
        data |= (numbers[place::each] << (place * width)).astype(np.uint8)
    return data


def unpack(pieces: tuple[Piece, ...], count: int) -> NDArray[np.uint8]:
    """Returns what `pack` got, flat."""
    total = np.zeros(-(-count // _TOGETHER) * _TOGETHER, np.uint8)
    for piece in pieces:
        shifts = np.arange(piece.per_byte, dtype=np.uint8) * np.uint8(piece.bits)
        mask = np.uint8((1 << piece.bits) - 1)
        total |= (((piece.data[:, None] >> shifts) & mask) << np.uint8(piece.shift)).reshape(-1)
    return total[:count]
