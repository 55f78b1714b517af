"""Graphs as exporters write them come out clean: the same numbers, and nothing moved for nothing."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from onnxcomp import optimize
from tests.helpers.check import assert_same

if TYPE_CHECKING:
    from types import ModuleType

PLACE = Path(__file__).parents[2] / "benchmarks" / "_exporters.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("exporters", PLACE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXPORTERS: Any = load()

# How often operators that only move elements are left, at most.
LEFT = {
    # One at the input, which is channels last, and one for each list of boxes, in whose order it is.
    "tf_convnet": {"Transpose": 1, "Add": 3, "Mul": 0},
    "tf_squeeze_excite": {"Transpose": 1},
    "tf_unet": {"Transpose": 2, "Add": 0},
    "tf_detector": {"Transpose": 7},
    "tf_quantized": {"Transpose": 1},
    "torch_vit": {"Shape": 1, "Expand": 1},
    "torch_attention_chunks": {"Slice": 0, "Split": 2},
    "torch_swin": {"Slice": 0},
    "torch_shuffles": {"Transpose": 1, "Gather": 1},
    "torch_focus": {"Slice": 0, "SpaceToDepth": 1},
    "torch_lstm_steps": {"Split": 8, "Transpose": 0},
    "preprocessing": {"Cast": 2, "Clip": 1, "Transpose": 1},
    "movement": {"Slice": 1, "Pad": 1, "Reshape": 0, "Expand": 0, "Tile": 0},
}


@pytest.mark.parametrize("name", sorted(LEFT))
def test_an_exported_graph_comes_out_clean(name: str) -> None:
    source = EXPORTERS.EXPORTERS[name]()
    result = optimize(source, verify=False)
    got = result.model.to_proto()
    feeds = [EXPORTERS.feeds_of(source, seed) for seed in range(2)]
    assert_same(source, got, feeds=feeds, runtimes=("onnxruntime",), rtol=1e-3, atol=1e-4)
    count = Counter(node.op_type for node in got.graph.node)
    assert {
        operator: count[operator] for operator, most in LEFT[name].items() if count[operator] > most
    } == {}


def test_every_graph_has_its_expectation() -> None:
    assert set(EXPORTERS.EXPORTERS) == set(LEFT)
