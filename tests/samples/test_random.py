"""Random samples."""

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from onnxcomp.diagnostics import Severity
from onnxcomp.samples import load_samples
from tests.samples.make import X, early_refusal, spec, stacked

BERT = [
    spec("input_ids", "batch", "seq", dtype="int64"),
    spec("attention_mask", "batch", "seq", dtype="int64"),
    spec("token_type_ids", "batch", "seq", dtype="int64"),
    spec("position_ids", "batch", "seq", dtype="int64"),
]


def test_random_samples_are_seeded_and_say_so() -> None:
    samples = load_samples("random:5", [X])
    assert len(samples) == 5
    assert np.array_equal(stacked(samples), stacked(samples))
    assert np.array_equal(stacked(samples), stacked(load_samples("random:5", [X])))
    assert not np.array_equal(stacked(samples), stacked(load_samples("random:5,seed=1", [X])))
    assert len({row.tobytes() for row in stacked(samples)}) == 5
    assert samples.synthetic
    assert all(part.synthetic for part in samples.split())
    (warning,) = samples.diagnostics
    assert warning.code == "GEN101"
    assert warning.severity is Severity.WARNING
    assert "give real samples with --data" in str(warning)
    assert samples.description == "5 random samples (seed 0)"


def test_a_part_has_the_same_values_as_the_whole() -> None:
    samples = load_samples("random:6", [X])
    _, validation = samples.split()
    assert np.array_equal(stacked(validation), stacked(samples)[1::2])


def test_the_number_of_samples() -> None:
    assert len(load_samples("random", [X])) == 32
    assert len(load_samples("random:", [X])) == 32
    assert len(load_samples("random:8", [X], limit=3)) == 3
    assert len(load_samples("random:seed=3", [X], limit=3)) == 3


def test_digests() -> None:
    texts = ["random:3", "random:3,seed=1", "random:3,batch=2", "random:4"]
    assert len({load_samples(text, [X]).digest() for text in texts}) == 4


def test_sizes_of_symbolic_dimensions() -> None:
    inputs = [
        spec("image", "N", 3, "H", "W"),
        spec("state", 2, None, "N", 8),
        spec("tokens", None, "T", dtype="int32"),
        spec("scalar"),
    ]

    def shapes(text: str) -> list[tuple[int, ...]]:
        return [array.shape for array in load_samples(text, inputs).first().values()]

    assert shapes("random") == [(1, 3, 64, 64), (2, 64, 1, 8), (1, 16), ()]
    assert shapes("random:2,batch=4,seq=7") == [(4, 3, 7, 7), (2, 7, 4, 8), (4, 7), ()]
    assert shapes("random:2,H=32,W=48,N=2") == [(2, 3, 32, 48), (2, 64, 2, 8), (1, 16), ()]
    assert shapes("random:2,state.1=5") == [(1, 3, 64, 64), (2, 5, 1, 8), (1, 16), ()]


def test_token_inputs_are_plausible() -> None:
    for feed in load_samples("random:4,seq=10,batch=2", BERT):
        assert all(array.shape == (2, 10) and array.dtype == np.int64 for array in feed.values())
        assert (feed["attention_mask"] == 1).all()
        assert (feed["token_type_ids"] == 0).all()
        assert feed["position_ids"][1].tolist() == list(range(10))
        assert feed["input_ids"].min() >= 0
        assert feed["input_ids"].max() < 32
        assert len(np.unique(feed["input_ids"])) > 3


@pytest.mark.parametrize(
    "dtype",
    [
        "float16",
        "float64",
        "int8",
        "uint8",
        "bool",
        "complex64",
        "O",
        ml_dtypes.bfloat16,
        ml_dtypes.int4,
    ],
)
def test_every_dtype(dtype: npt.DTypeLike) -> None:
    feed = load_samples("random:2", [spec("v", 2, 3, dtype=dtype)]).first()
    assert feed["v"].dtype == dtype
    assert feed["v"].shape == (2, 3)


def test_optional_inputs_are_left_out() -> None:
    assert set(load_samples("random:2", [X, spec("w", 3, optional=True)]).first()) == {"x"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("random:x", '"x" is not understood'),
        ("random:-3", '"-3" is not understood'),
        ("random:0", "the number of samples must be at least 1"),
        ("random:3,batch=0", "batch must be at least 1"),
        ("random:3,=4", '"=4" is not understood'),
        ("random:3,batsh=4", 'no option or dimension "batsh" (did you mean batch?)'),
        ("random:3,zzz=4", "options are seed, batch, seq, N"),
    ],
)
def test_what_is_not_understood(text: str, problem: str) -> None:
    assert problem in early_refusal(text, X)
