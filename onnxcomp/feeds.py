"""Whether arrays fit the inputs of a model: names and element types, before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.errors import SamplesError, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxcomp.signature import TensorSpec


def check_feeds(inputs: Sequence[TensorSpec], feeds: Mapping[str, np.ndarray]) -> None:
    """Checks the names and element types of the arrays for one run.

    Raises:
        SamplesError: If one is missing, unknown or of another type; the message names it.
    """
    names = {spec.name for spec in inputs}
    missing = [spec.name for spec in inputs if not spec.optional and spec.name not in feeds]
    if missing:
        raise SamplesError(f"no value for input {', '.join(quoted(name) for name in missing)}")
    for name in feeds:
        if name not in names:
            known = ", ".join(quoted(spec.name) for spec in inputs)
            raise SamplesError(f"the model has no input {quoted(name)}", hint=f"it has {known}")
    for spec in inputs:
        array = feeds.get(spec.name)
        if spec.dtype is not None and isinstance(array, np.ndarray) and not _fits(spec, array):
            raise SamplesError(f"input {quoted(spec.name)} takes {spec.dtype}, not {array.dtype}")


def _fits(spec: TensorSpec, array: np.ndarray) -> bool:
    is_text = spec.dtype is not None and spec.dtype.kind == "O"
    return array.dtype == spec.dtype or (is_text and array.dtype.kind in "USO")
