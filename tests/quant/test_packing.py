"""Packed numbers: nothing lost, nothing wasted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.quant.packing import pack, packed_bytes, unpack


@given(bits=st.integers(1, 8), count=st.integers(0, 70), seed=st.integers(0, 99))
def test_what_is_packed_comes_back(bits: int, count: int, seed: int) -> None:
    numbers = np.random.default_rng(seed).integers(0, 1 << bits, count).astype(np.uint8)
    pieces = pack(numbers, bits)
    assert np.array_equal(unpack(pieces, count), numbers)
    assert sum(piece.data.nbytes for piece in pieces) == packed_bytes(count, bits)
    assert sum(piece.bits for piece in pieces) == bits


def test_the_first_number_has_the_lowest_bits() -> None:
    (piece,) = pack(np.array([1, 2, 3, 0, 0, 0, 0, 0], np.uint8), 2)
    assert list(piece.data) == [0b00_11_10_01, 0]


@pytest.mark.parametrize(("numbers", "bits"), [([4], 2), ([1], 0), ([1], 9)])
def test_what_does_not_fit_is_an_error(numbers: list[int], bits: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        pack(np.array(numbers, np.uint8), bits)
