"""Rounded constants in files that nobody checked."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.ir import Model
from onnxcomp.quant.grid import grid_of
from onnxcomp.quant.stored import dequantized, fits
from tests.helpers.text import model

BLOCKS = """
    g (float[2, 4] x) => (y) <int8[4, 3] w, float[{blocks}, 3] s> {{
      d = DequantizeLinear <axis = 0, block_size = {size}> (w, s)
      y = MatMul (x, d)
    }}"""


@pytest.mark.parametrize("size", [4, 1 << 40])
def test_a_block_is_no_larger_than_what_it_lies_in(size: int) -> None:
    opened = Model.load(model(BLOCKS.format(blocks=1, size=size)))
    (node,) = (node for node in opened.graph if node.op_type == "DequantizeLinear")
    grid = grid_of(node.outputs[0])
    assert grid is not None
    expected = np.asarray(grid.numbers, np.float64) * grid.scale
    np.testing.assert_allclose(grid.values(), expected)
    np.testing.assert_allclose(
        dequantized(grid.numbers, grid.scale, None, 0, size), expected, rtol=1e-6
    )


@pytest.mark.parametrize(("blocks", "size"), [(2, 4), (1, 3), (1, -1), (3, 1 << 40)])
def test_another_number_of_blocks_is_refused(blocks: int, size: int) -> None:
    opened = Model.load(model(BLOCKS.format(blocks=blocks, size=size)))
    (node,) = (node for node in opened.graph if node.op_type == "DequantizeLinear")
    assert grid_of(node.outputs[0]) is None
    numbers, scale = np.ones((4, 3), np.int8), np.ones((blocks, 3), np.float32)
    assert not fits((4, 3), scale, None, 0, size)
    with pytest.raises(ValueError, match="blocks"):
        dequantized(numbers, scale, None, 0, size)
