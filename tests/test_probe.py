"""Made-up inputs fit the signature, contain awkward numbers, and find sizes that a model takes."""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.errors import SamplesError
from onnxcomp.probe import probe_feeds
from onnxcomp.runtime import Session
from onnxcomp.signature import Shape, Signature, TensorSpec


def spec(name: str, dtype: Any, shape: Shape | None, *, optional: bool = False) -> TensorSpec:
    return TensorSpec(name, None if dtype is None else np.dtype(dtype), shape, optional)


def signature(*inputs: TensorSpec) -> Signature:
    return Signature(inputs, ())


class Picky:
    """Takes inputs of one size only, and no whole numbers above 1."""

    def run(self, feeds: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        if feeds["x"].shape != (1, 128) or feeds["i"].max(initial=0) > 1:
            raise SamplesError("wrong size")
        return {}


def test_shapes_and_symbols() -> None:
    feeds = probe_feeds(
        signature(
            spec("a", np.float32, ("N", 3, "T")),
            spec("b", np.float32, ("T", "N")),
            spec("c", np.int64, ()),
            spec("d", np.bool_, (4, None)),
            spec("e", object, ("N",)),
            spec("f", np.float16, None),
        ),
        count=3,
    )
    assert len(feeds) == 3
    for sample in feeds:
        n, three, t = sample["a"].shape
        assert three == 3
        assert sample["b"].shape == (t, n)
        assert sample["c"].shape == ()
        assert sample["d"].shape[0] == 4
        assert sample["d"].dtype == np.bool_
        assert all(isinstance(word, str) for word in sample["e"])
        assert sample["f"].dtype == np.float16


def test_awkward_numbers_are_among_them_and_all_are_finite() -> None:
    feeds = probe_feeds(signature(spec("x", np.float32, (64, 64))), count=2)
    ordinary, awkward = feeds[0]["x"], feeds[1]["x"]
    assert (ordinary < 0).any()
    magnitude = np.abs(awkward)
    assert (awkward == 0).any()
    assert ((magnitude > 0) & (magnitude < np.finfo(np.float32).tiny)).any()
    assert (magnitude >= 1000).any()
    assert np.isfinite(awkward).all()


@pytest.mark.parametrize(
    "dtype",
    [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.float64, np.complex64],
)
def test_every_floating_type_is_finite(dtype: Any) -> None:
    for sample in probe_feeds(signature(spec("x", dtype, (32, 32))), count=2):
        assert sample["x"].dtype == np.dtype(dtype)
        assert np.isfinite(sample["x"].astype(np.complex128)).all()


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, ml_dtypes.int4])
def test_whole_numbers_are_small_and_not_negative(dtype: Any) -> None:
    (sample,) = probe_feeds(signature(spec("x", dtype, (100,))), count=1)
    assert sample["x"].dtype == np.dtype(dtype)
    values = sample["x"].astype(np.int64)
    assert values.min() == 0
    assert 1 <= values.max() < 8


def test_the_seed_decides() -> None:
    one = signature(spec("x", np.float32, (5,)))
    first, again, other = (probe_feeds(one, count=2, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[1]["x"], again[1]["x"])
    assert (first[1]["x"] != other[1]["x"]).any()


def test_defaults_are_given_in_every_second_sample() -> None:
    two = signature(spec("x", np.float32, (5,)), spec("d", np.float32, (5,), optional=True))
    assert ["d" in sample for sample in probe_feeds(two, count=4)] == [False, True, False, True]


def test_sizes_are_tried_until_the_model_takes_them() -> None:
    open_sizes = signature(spec("x", np.float32, ("N", "T")), spec("i", np.int64, ("N",)))
    (sample,) = probe_feeds(open_sizes, count=1, runner=Picky())
    assert sample["x"].shape == (1, 128)


class Stateful:
    """Takes a batch of one, which is the second dimension of its state."""

    def run(self, feeds: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        if feeds["state"].shape[1] != feeds["x"].shape[0] or feeds["x"].shape[1] < 100:
            raise SamplesError("wrong size")
        return {}


def test_the_batch_need_not_be_the_first_dimension() -> None:
    inputs = signature(spec("x", np.float32, (None, None)), spec("state", np.float32, (2, None, 8)))
    (sample,) = probe_feeds(inputs, count=1, runner=Stateful())
    assert sample["state"].shape == (2, sample["x"].shape[0], 8)


def test_a_real_model_refuses_until_the_size_is_right() -> None:
    proto = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[N, T] x, float[5] d) => (float[M, 3] y) {
          m = MatMul (x, w)
          y = Add (m, s)
        }
    """)
    proto.graph.initializer.extend(
        [
            numpy_helper.from_array(np.ones((224, 3), np.float32), "w"),
            numpy_helper.from_array(np.ones(3, np.float32), "s"),
            numpy_helper.from_array(np.ones(5, np.float32), "d"),
        ]
    )
    with Session.open(proto) as session:
        feeds = probe_feeds(Signature(session.inputs, session.outputs), runner=session)
    assert feeds[0]["x"].shape[1] == 224


def test_a_model_that_takes_nothing_says_why() -> None:
    with pytest.raises(SamplesError, match=r"takes none of the inputs.*wrong size"):
        probe_feeds(
            signature(spec("x", np.float32, (7, 7)), spec("i", np.int64, (1,))), runner=Picky()
        )


def test_inputs_that_are_no_tensors_are_named() -> None:
    with pytest.raises(SamplesError, match='input "s": not a tensor'):
        probe_feeds(signature(spec("s", None, None)))


class Elastic:
    """Takes every size, and notes them."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def run(self, feeds: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        self.shapes.append(feeds["x"].shape)
        return {"y": np.log(np.abs(feeds["x"])) if (feeds["x"] == 0).any() else feeds["x"]}


def test_sizes_differ_between_samples_and_one_is_among_them() -> None:
    runner = Elastic()
    one = signature(spec("x", np.float32, ("N", "T")))
    with np.errstate(divide="ignore"):
        samples = probe_feeds(one, count=3, runner=runner, vary_sizes=True)
        same = probe_feeds(one, count=3, runner=runner)
    assert [sample["x"].shape for sample in samples] == [(2, 16), (1, 8), (1, 1)]
    assert len({sample["x"].shape for sample in same}) == 1


def test_where_awkward_numbers_say_nothing_normal_ones_do() -> None:
    one = signature(spec("x", np.float32, ("N", 40)))
    with np.errstate(divide="ignore"):
        samples = probe_feeds(one, count=2, runner=Elastic())
    assert not any((sample["x"] == 0).any() for sample in samples)


def test_it_ends_when_that_is_enough() -> None:
    one = signature(spec("x", np.float32, ("N", 40)))
    with np.errstate(divide="ignore"):
        samples = probe_feeds(one, count=5, runner=Elastic(), enough=lambda found: len(found) == 2)
    assert len(samples) == 2


def test_large_numbers_have_a_sample_to_themselves() -> None:
    samples = probe_feeds(signature(spec("x", np.float32, (64,))), count=3)
    peaks = [np.abs(sample["x"]).max() for sample in samples]
    assert peaks[0] < 10
    assert peaks[1] == 1e3
    assert peaks[2] == 1e9
