"""Random valid models through every lossless pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxcomp.optimization import SIMPLIFY
from onnxcomp.pipeline import Pipeline
from tests.helpers.check import serialized
from tests.helpers.graphs import draw, feeds
from tests.helpers.numbers import run

# Fusing adds in another order; the others compute exactly what was there.
EXACT = "eliminate-dead,fixpoint(eliminate-identity,share-common,inline-branches,eliminate-dead)"
BATCHES = 10


def _outputs(proto: onnx.ModelProto) -> list[list[np.ndarray]] | None:
    try:
        return [run(proto, feeds(proto, seed), "onnxruntime") for seed in range(4)]
    except onnxruntime.capi.onnxruntime_pybind11_state.Fail:
        return None  # a division by a dimension of zero, and the like


def _assert_close(expected: np.ndarray, got: np.ndarray, what: str, *, exact: bool) -> None:
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape), what
    if exact:
        np.testing.assert_array_equal(got, expected, err_msg=what)
        return
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(got[~finite], expected[~finite], err_msg=what)
    peak = max(1.0, float(np.abs(expected[finite]).max(initial=0)))
    np.testing.assert_allclose(
        got[finite], expected[finite], rtol=1e-4, atol=2e-5 * peak, err_msg=what
    )


def _check(seed: int, recipe: str, *, exact: bool, steps: int) -> int:
    proto = draw(seed, steps, smooth=not exact)
    expected = _outputs(proto)
    if expected is None:
        return 0
    before = serialized(proto)
    pipeline = Pipeline.parse(recipe)
    got = pipeline.run(proto).model.to_proto()
    assert serialized(proto) == before
    onnx.checker.check_model(got)
    outputs = _outputs(got)
    assert outputs is not None, seed
    for first, second in zip(expected, outputs, strict=True):
        for one, two in zip(first, second, strict=True):
            _assert_close(np.asarray(one), np.asarray(two), f"seed {seed}", exact=exact)
    return 1


def _batch(index: int, size: int) -> range:
    return range(index * size, (index + 1) * size)


@pytest.mark.parametrize("index", range(BATCHES))
def test_exact_passes_keep_every_bit(index: int) -> None:
    ran = [_check(seed, EXACT, exact=True, steps=14) for seed in _batch(index, 12)]
    assert sum(ran) > len(ran) // 2


@pytest.mark.parametrize("index", range(BATCHES))
def test_all_passes_keep_the_numbers(index: int) -> None:
    ran = [_check(seed, SIMPLIFY, exact=False, steps=14) for seed in _batch(1000 + index, 12)]
    assert sum(ran) > len(ran) // 2


@pytest.mark.slow
@pytest.mark.parametrize("index", range(BATCHES))
def test_long_models(index: int) -> None:
    for seed in _batch(5000 + index, 40):
        _check(seed, EXACT, exact=True, steps=40)
        _check(seed, SIMPLIFY, exact=False, steps=20)


SCRIPT = """
import hashlib, json, sys
from onnxcomp.optimization import SIMPLIFY
from onnxcomp.pipeline import Pipeline
from tests.helpers.graphs import draw
made = [Pipeline.parse(SIMPLIFY).run(draw(seed, 25)).model.to_proto() for seed in range(20)]
print(json.dumps([hashlib.sha256(one.SerializeToString()).hexdigest() for one in made]))
"""


def test_the_same_bytes_for_every_hash_seed() -> None:
    found = []
    for seed in ("0", "1", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", SCRIPT]
        root = Path(__file__).parents[2]
        done = subprocess.run(
            command, env=environment, cwd=root, check=True, capture_output=True, text=True
        )
        found.append(json.loads(done.stdout))
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == len(found[0])


LIGHT = sorted((Path(onnx.__file__).parent / "backend" / "test" / "data" / "light").glob("*.onnx"))


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_packaged_networks_settle_in_one_run(path: Path) -> None:
    pipeline = Pipeline.parse(SIMPLIFY)
    once = pipeline.run(path).model.to_proto()
    again = pipeline.run(once)
    assert not again.changed
    assert serialized(again.model.to_proto()) == serialized(once)


def test_the_demo_settles_in_one_run() -> None:
    demo = pytest.importorskip("onnxcomp.demo")
    path = next(Path(demo.__file__).parent.rglob("*.onnx"), None)
    if path is None:
        pytest.skip("the demo's model is not there")
    pipeline = Pipeline.parse(SIMPLIFY)
    once = pipeline.run(path).model.to_proto()
    assert serialized(pipeline.run(once).model.to_proto()) == serialized(once)
