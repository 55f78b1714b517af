"""npz files: how arrays become samples, and what is refused before any value is read."""

import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxcomp.samples import Limits, load_samples
from onnxcomp.signature import TensorSpec
from tests.samples.make import X, early_refusal, npz, refusal, spec, stacked, values

COMPRESSIONS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_axis_0_is_the_sample_when_there_is_one_axis_more(tmp_path: Path, compression: int) -> None:
    data = values(5, 1, 3)
    samples = load_samples(npz(tmp_path / "a.npz", compression, x=data), [X])
    assert len(samples) == 5
    assert np.array_equal(stacked(samples), data)
    assert "5 samples" in samples.description
    assert "axis 0 = sample" in samples.description


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_large_samples_of_every_compression(tmp_path: Path, compression: int) -> None:
    data = np.tile(
        values(3, 1, 50_000), (1, 1, 2)
    )  # more than one chunk of packed and unpacked bytes
    samples = load_samples(npz(tmp_path / "a.npz", compression, x=data), [spec("x", 1, 100_000)])
    calibration, validation = samples.split()
    assert np.array_equal(stacked(samples), data)
    assert np.array_equal(stacked(calibration), data[list(calibration.indices)])
    assert np.array_equal(stacked(validation), data[list(validation.indices)])


def test_same_rank_is_split_along_the_batch_axis(tmp_path: Path) -> None:
    data = values(5, 3)
    samples = load_samples(npz(tmp_path / "a.npz", x=data), [X])
    assert np.array_equal(stacked(samples), data[:, None])
    assert "split along the batch axis" in samples.description


def test_a_fixed_batch_takes_that_many_rows_and_notes_what_is_left(tmp_path: Path) -> None:
    data = values(9, 3)
    samples = load_samples(npz(tmp_path / "a.npz", x=data), [spec("x", 4, 3)])
    assert np.array_equal(stacked(samples), data[:8].reshape(2, 4, 3))
    assert samples.notes == ('"x": 1 rows left over that do not fill a batch',)
    assert "in batches of 4" in samples.description


def test_too_few_rows_for_one_batch(tmp_path: Path) -> None:
    text = early_refusal(npz(tmp_path / "a.npz", x=values(3, 3)), spec("x", 4, 3))
    assert 'a.npz", input "x": there is no sample in an array of shape [3,3]' in text


def test_keys_with_a_sample_number_may_differ_in_shape(tmp_path: Path) -> None:
    arrays = {f"{i}__x": values(1, 3, i + 1) for i in (10, 9, 0)}
    path = npz(tmp_path / "a.npz", **arrays, label_y=np.arange(3))
    samples = load_samples(path, [spec("x", "N", 3, None)])
    assert [feed["x"].shape for feed in samples] == [(1, 3, 1), (1, 3, 10), (1, 3, 11)]
    assert samples.labels["label_y"].tolist() == [0, 1, 2]


def test_scalars_are_stored_as_one_number_per_sample(tmp_path: Path) -> None:
    rate = spec("rate", dtype="int64")
    for shape in ((4,), (4, 1)):
        data = np.arange(4).reshape(shape)
        samples = load_samples(npz(tmp_path / "a.npz", x=values(4, 1, 3), rate=data), [X, rate])
        feeds = list(samples)
        assert [feed["rate"].shape for feed in feeds] == [()] * 4
        assert [int(feed["rate"]) for feed in feeds] == [0, 1, 2, 3]


def test_a_scalar_given_once_is_used_for_every_sample(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", x=values(4, 1, 3), rate=np.int64(7))
    samples = load_samples(path, [X, spec("rate", dtype="int64")])
    assert [int(feed["rate"]) for feed in samples] == [7] * 4


def test_one_sample_without_its_batch_axis(tmp_path: Path) -> None:
    data = values(3, 4, 4)
    samples = load_samples(npz(tmp_path / "a.npz", x=data), [spec("x", 1, 3, 4, 4)])
    assert len(samples) == 1
    assert np.array_equal(samples.first()["x"], data[None])


def test_unknown_rank_and_vague_dimensions_take_axis_0_as_sample(tmp_path: Path) -> None:
    data = values(4, 2, 3)
    path = npz(tmp_path / "a.npz", x=data)
    assert np.array_equal(
        stacked(load_samples(path, [TensorSpec("x", np.dtype("f4"), None)])), data
    )
    assert np.array_equal(stacked(load_samples(path, [spec("x", -1, 0)])), data)


def test_an_unnamed_array_is_the_only_input(tmp_path: Path) -> None:
    data = values(4, 1, 3)
    np.savez(tmp_path / "a.npz", data)
    assert np.array_equal(stacked(load_samples(tmp_path / "a.npz", [X])), data)


def test_labels_are_kept_for_a_metric_and_follow_the_samples(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", x=values(6, 1, 3), label_y=np.arange(6), label_names=np.zeros(2))
    samples = load_samples(path, [X])
    calibration, validation = samples.split()
    assert sorted(samples.labels) == ["label_names", "label_y"]
    assert samples.labels["label_y"].tolist() == list(range(6))
    assert validation.labels["label_y"].tolist() == list(validation.indices)
    assert calibration.take(1).labels["label_y"].tolist() == [calibration.indices[0]]
    assert validation.labels["label_names"].shape == (2,)
    with pytest.raises(KeyError):
        samples.labels["x"]


def test_an_input_whose_name_starts_with_label_is_an_input(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", x=values(2, 1, 3), label_in=values(2, 1, 3))
    samples = load_samples(path, [X, spec("label_in", 1, 3)])
    assert set(samples.first()) == {"x", "label_in"}
    assert not samples.labels


def test_optional_inputs_may_be_left_out(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", x=values(2, 1, 3))
    assert set(load_samples(path, [X, spec("w", 3, optional=True)]).first()) == {"x"}


def test_names_that_look_like_sample_numbers_but_are_inputs(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", **{"0__x": values(2, 1, 3)})
    assert len(load_samples(path, [spec("0/x", 1, 3)])) == 2


@pytest.mark.parametrize(
    ("stored", "wanted", "note"),
    [
        ("float64", "float32", "converted from float64 to float32"),
        ("int64", "int32", "converted from int64 to int32"),
        ("int32", "int64", "converted from int32 to int64"),
        ("uint8", "int32", "converted from uint8 to int32"),
        ("float16", "float32", "converted from float16 to float32"),
        (">f4", "float32", ""),
        ("float32", "float32", ""),
    ],
)
def test_values_are_converted_where_nothing_is_lost(
    tmp_path: Path, stored: str, wanted: str, note: str
) -> None:
    data = values(3, 1, 3, dtype=stored)
    samples = load_samples(npz(tmp_path / "a.npz", x=data), [spec("x", 1, 3, dtype=wanted)])
    result = stacked(samples)
    assert result.dtype == wanted
    assert np.array_equal(result, data.astype(wanted))
    assert samples.notes == ((f'"x" {note}',) if note else ())


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ("int64", "float32"),
        ("float32", "int64"),
        ("float32", "float16"),
        ("bool", "int64"),
        ("<M8[s]", "int64"),
    ],
)
def test_other_dtypes_are_refused(tmp_path: Path, stored: str, wanted: str) -> None:
    path = npz(tmp_path / "a.npz", x=np.ones((2, 1, 3), dtype="int64").astype(stored))
    text = early_refusal(path, spec("x", 1, 3, dtype=wanted))
    assert "a.npz" in text
    assert "dtype" in text


@pytest.mark.parametrize(
    ("stored", "wanted", "value"),
    [
        ("int64", "int32", 2**40),
        ("int64", "uint32", -1),
        ("int64", "uint64", -1),
        ("uint64", "int64", 2**63),
        ("float64", "float32", 1e300),
    ],
)
def test_values_that_do_not_fit_are_refused(
    tmp_path: Path, stored: str, wanted: str, value: float
) -> None:
    data = np.zeros((3, 1, 3), stored)
    data[2, 0, 1] = value
    text = refusal(npz(tmp_path / "a.npz", x=data), spec("x", 1, 3, dtype=wanted))
    assert 'a.npz", sample 2, input "x": the value' in text
    assert f"does not fit into {wanted}" in text


def test_types_that_numpy_stores_as_bytes(tmp_path: Path) -> None:
    data = values(2, 1, 3).astype(ml_dtypes.bfloat16)
    path = npz(tmp_path / "a.npz", x=data.view("V2"))
    samples = load_samples(path, [spec("x", 1, 3, dtype=ml_dtypes.bfloat16)])
    assert np.array_equal(stacked(samples), data)
    data[1, 0, 0] = np.nan
    path = npz(tmp_path / "a.npz", x=data.view("V2"))
    assert "sample 1" in refusal(path, spec("x", 1, 3, dtype=ml_dtypes.bfloat16))


def test_text(tmp_path: Path) -> None:
    data = np.array([["a", "bc"], ["", "ü"]])
    for stored in (data, np.char.encode(data, "utf-8")):
        samples = load_samples(npz(tmp_path / "a.npz", t=stored), [spec("t", "N", dtype="O")])
        assert [feed["t"].tolist() for feed in samples] == data.tolist()


def test_fortran_order(tmp_path: Path) -> None:
    data = np.asfortranarray(values(4, 2, 3))
    samples = load_samples(npz(tmp_path / "a.npz", x=data), [spec("x", 2, 3)])
    assert np.array_equal(stacked(samples), data)
    limits = Limits(sample_bytes=90)
    assert "ascontiguousarray" in refusal(tmp_path / "a.npz", spec("x", 2, 3), limits=limits)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_name_the_sample(tmp_path: Path, bad: float) -> None:
    data = values(4, 1, 3)
    data[3, 0, 2] = bad
    samples = load_samples(npz(tmp_path / "a.npz", x=data), [X])
    assert len(samples) == 4
    text = refusal(samples)
    assert 'a.npz", sample 3, input "x": 1 of 3 values are not finite' in text


def test_a_missing_input_names_what_is_there(tmp_path: Path) -> None:
    text = early_refusal(npz(tmp_path / "a.npz", x=values(2, 1, 3)), X, spec("y", 1))
    assert 'a.npz": no data for input "y" (it has "x")' in text


def test_an_unknown_key_suggests_the_input(tmp_path: Path) -> None:
    text = early_refusal(npz(tmp_path / "a.npz", imagee=values(2, 1, 3)), spec("image", 1, 3))
    assert '"imagee" is not an input of the model (did you mean "image"?)' in text
    text = early_refusal(npz(tmp_path / "a.npz", y_true=values(2)), spec("image", 1, 3))
    assert 'the model takes "image"' in text


def test_names_from_files_are_safe_to_print(tmp_path: Path) -> None:
    text = early_refusal(npz(tmp_path / "a.npz", **{"\x1b[31m\nevil" * 40: values(2)}), X)
    assert r"\x1b[31m\nevil" in text
    assert len(text) < 400


def test_a_wrong_shape_shows_both(tmp_path: Path) -> None:
    text = early_refusal(npz(tmp_path / "a.npz", x=values(5, 1, 4)), X)
    assert 'a.npz", input "x": the shape is [5,1,4], the model takes [N,3]' in text
    assert "[N,N,3]" in text


def test_a_wrong_shape_of_one_keyed_sample_names_it(tmp_path: Path) -> None:
    arrays = {"0__x": values(1, 3), "1__x": values(1, 4)}
    text = early_refusal(npz(tmp_path / "a.npz", **arrays), X)
    assert 'a.npz", sample 1, input "x": the shape is [1,4], the model takes [N,3]' in text


def test_a_keyed_sample_without_an_input(tmp_path: Path) -> None:
    arrays = {"0__x": values(1, 3), "0__y": values(1), "1__x": values(1, 3)}
    text = early_refusal(npz(tmp_path / "a.npz", **arrays), X, spec("y", 1))
    assert 'sample 1: no data for input "y"' in text


def test_keyed_samples_given_twice(tmp_path: Path) -> None:
    text = early_refusal(
        npz(tmp_path / "a.npz", **{"1__x": values(1, 3), "01__x": values(1, 3)}), X
    )
    assert "sample 1 has two arrays" in text


def test_both_kinds_of_keys(tmp_path: Path) -> None:
    text = early_refusal(npz(tmp_path / "a.npz", **{"0__x": values(1, 3), "x": values(1, 3)}), X)
    assert "cannot be mixed" in text


def test_different_numbers_of_samples(tmp_path: Path) -> None:
    text = early_refusal(
        npz(tmp_path / "a.npz", x=values(4, 1, 3), y=values(3, 1)), X, spec("y", 1)
    )
    assert 'different numbers of samples: "x" 4, "y" 3' in text


def test_no_samples_in_the_arrays(tmp_path: Path) -> None:
    assert "there is no sample" in early_refusal(npz(tmp_path / "a.npz", x=values(0, 1, 3)), X)


def test_inputs_that_are_not_tensors() -> None:
    text = early_refusal("random:2", TensorSpec("seq", None, None))
    assert 'input "seq" is not a plain tensor' in text


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    data=hnp.arrays(
        dtype=st.sampled_from(["float32", "float64", "int32", "int64", "uint8", "bool", ">i4"]),
        shape=st.tuples(st.integers(1, 5), st.integers(1, 2), st.integers(0, 3)),
        elements={"allow_nan": False, "allow_infinity": False},
    ),
    compression=st.sampled_from(COMPRESSIONS),
    fortran=st.booleans(),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, data: np.ndarray, compression: int, fortran: bool
) -> None:
    path = tmp_path_factory.mktemp("round") / "a.npz"
    stored = np.asfortranarray(data) if fortran else data
    keyed = {f"{i}__x": row for i, row in enumerate(stored)}
    dims: tuple[str, str] = ("A", "B")
    wanted = spec("x", *dims, dtype=data.dtype.newbyteorder("="))
    for arrays in ({"x": stored}, keyed):
        samples = load_samples(npz(path, compression, **arrays), [wanted])
        assert np.array_equal(stacked(samples), data)
        assert np.array_equal(stacked(samples), data)
        half = samples.split()[0] if len(samples) > 1 else samples
        assert np.array_equal(stacked(half), data[list(half.indices)])
