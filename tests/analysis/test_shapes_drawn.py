"""Inferred types and shapes against what onnxruntime makes, in random models of every operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcomp.analysis.facts import Facts
from onnxcomp.analysis.shapes import ShapeMap, Shapes
from onnxcomp.ir import Model
from tests.helpers.drawn import VARIANTS, Drawn, draw_any
from tests.helpers.drawn.core import open_session
from tests.helpers.noise import exposed

BATCH = 10


def _contradictions(drawn: Drawn) -> list[str]:
    model = Model.load(drawn.proto)
    shapes = Facts(model).get(Shapes())
    found = []
    for variant in VARIANTS[:3]:
        session = open_session(exposed(drawn.proto))
        names = [output.name for output in session.get_outputs()]
        arrays = dict(zip(names, session.run(None, drawn.feeds(variant)), strict=True))
        symbols: dict[str, int] = {}
        for node in model.graph:
            for value in node.outputs:
                array = arrays.get(value.name)
                if isinstance(array, (np.ndarray, np.generic)):
                    problem = _contradiction(shapes, value, np.asarray(array), symbols)
                    found += (
                        [f"seed {drawn.seed}, {variant}: {node.op_type} {problem}"]
                        if problem
                        else []
                    )
    return found


def _contradiction(shapes: ShapeMap, value: Any, array: np.ndarray, symbols: dict[str, int]) -> str:
    shape, dtype = shapes.shape(value), shapes.dtype(value)
    if dtype is not None and array.dtype.kind not in "OU" and dtype.numpy() != array.dtype:
        return f"{value.name} is {array.dtype}, not {dtype}"
    if shape is None:
        return ""
    text = f"{value.name} has shape {array.shape}, not {shape}"
    if len(shape) != array.ndim:
        return text
    for dim, size in zip(shape, array.shape, strict=True):
        # One symbol is one size throughout a run.
        known = dim if isinstance(dim, int) else symbols.setdefault(str(dim), size) if dim else size
        if known != size:
            return text
    return ""


@pytest.mark.parametrize("index", range(6))
def test_what_is_inferred_is_what_runs(index: int) -> None:
    for seed in range(7000 + index * BATCH, 7000 + (index + 1) * BATCH):
        assert _contradictions(draw_any(seed, 8)) == []


@pytest.mark.parametrize("seed", [8054, 8274, 8328, 8396, 8411])
def test_what_the_runtime_does_beyond_the_standard(seed: int) -> None:
    """Slopes larger than what they slope, slices that go back to an end without end."""
    assert _contradictions(draw_any(seed, 12)) == []


@pytest.mark.slow
@pytest.mark.parametrize("index", range(10))
def test_what_is_inferred_is_what_runs_in_many_models(index: int) -> None:
    for seed in range(8000 + index * 50, 8000 + (index + 1) * 50):
        assert _contradictions(draw_any(seed, 12)) == []
