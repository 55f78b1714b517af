"""Small builders for the tests of samples."""

import re
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from onnxcomp.errors import SamplesError
from onnxcomp.samples import Samples, load_samples
from onnxcomp.signature import TensorSpec


def spec(
    name: str, *shape: int | str | None, dtype: npt.DTypeLike = "float32", optional: bool = False
) -> TensorSpec:
    return TensorSpec(name, np.dtype(dtype), shape, optional)


X = spec("x", "N", 3)


def values(*shape: int, dtype: npt.DTypeLike = "float32", seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if np.dtype(dtype).kind in "iu":
        return np.asarray(generator.integers(0, 100, shape), dtype)
    return np.asarray(generator.standard_normal(shape), dtype)


def npz(path: Path, compression: int = zipfile.ZIP_DEFLATED, /, **arrays: object) -> Path:
    """Writes an npz file; `__` in a key stands for `/`."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for key, array in arrays.items():
            with archive.open(f"{key.replace('__', '/')}.npy", "w") as member:
                np.lib.format.write_array(member, np.asanyarray(array))
    return path


def stacked(samples: Samples, name: str = "x") -> np.ndarray:
    return np.stack([feed[name] for feed in samples])


def refusal(source: object, *inputs: TensorSpec, **options: object) -> str:
    """Returns the error that loading and reading a source ends with; it must be one line."""
    with pytest.raises(SamplesError) as caught:
        load_samples(source, inputs, **options).check()  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    return text


def early_refusal(source: object, *inputs: TensorSpec, **options: object) -> str:
    """Returns the error of loading alone, before any value is read."""
    with pytest.raises(SamplesError) as caught:
        load_samples(source, inputs, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert not re.search(r"[\n\r\x1b]", text)
    return text
