"""Models between the lossy steps of a pipeline."""

from __future__ import annotations

from onnxcomp.ir import Model
from onnxcomp.pipeline import Pipeline
from onnxcomp.snapshots import Snapshots
from tests.helpers import text

NET = """g (float[1, 1, 2, 2] x) => (float[1, 1, 2, 2] y)
    <float[16, 1, 1, 1] w, float[1, 16, 1, 1] v> {
      a = Identity (x)
      b = Conv (a, w)
      c = Relu (b)
      y = Conv (c, v)
    }"""


def watched(passes: str) -> Snapshots:
    snapshots = Snapshots()
    steps = Pipeline.parse(passes).steps
    Pipeline(steps, (snapshots,)).run(Model.load(text.model(NET)))
    return snapshots


def channels(model: Model) -> int:
    shape = model.graph.initializers["w"].shape
    assert shape is not None
    return int(shape.numpy()[0])


def test_a_model_is_kept_before_each_lossy_step() -> None:
    found = watched("eliminate-identity,prune-channels{ratio=0.5},prune-channels{ratio=0.5}")
    names = ["simplified", "prune-channels{ratio=0.5}"]
    assert list(found.models) == names
    assert [channels(found.models[name]) for name in names] == [16, 8]
    assert found.last == "prune-channels{ratio=0.5}"


def test_the_same_step_twice_has_two_names() -> None:
    step = "prune-channels{ratio=0.25 multiple=1}"
    found = watched(",".join([step] * 3))
    assert list(found.models) == [step, f"{step}, 2"]


def test_nothing_is_kept_where_nothing_was_done() -> None:
    assert not watched("prune-channels{ratio=0.5}").models
    assert not watched("fuse-batchnorm,prune-channels{ratio=0.5}").models


def test_lossless_steps_behind_a_lossy_one_belong_to_it() -> None:
    found = watched("prune-channels{ratio=0.5},eliminate-identity,prune-channels{ratio=0.5}")
    assert list(found.models) == ["prune-channels{ratio=0.5}"]
