"""What has to be done to a node when the opset is raised from 6 to 7, which brought broadcasting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxcomp_passes.convert.site import Site


def _broadcast(site: Site) -> None:
    """The second operand was aligned at `axis`; now it is aligned at the end."""
    axis = site.attribute("axis")
    if site.attribute("broadcast", 0) and axis is not None:
        left, right = site.rank(0), site.rank(1)
        if left is None or right is None:
            site.refuse("its broadcasting begins at an axis, and the ranks are not known")
        missing = left - (axis % left if left else 0) - right
        if missing > 0:
            _append_ones(site, right, missing)
    site.drop("axis", "broadcast")


def _append_ones(site: Site, rank: int, count: int) -> None:
    found = site.array(1)
    if found is not None:
        site.feed(1, found.reshape(*found.shape, *[1] * count), "aligned")
        return
    axes = list(range(rank, rank + count))
    operands = [site.input(1)]
    if site.target >= 13:
        operands.append(site.constant(np.asarray(axes, np.int64), "axes"))
    attributes = {} if site.target >= 13 else {"axes": axes}
    made = site.edit.insert("Unsqueeze", operands, before=site.node, attributes=attributes)
    site.edit.set_input(site.node, 1, made.outputs[0])


def _test_mode(site: Site) -> None:
    if not site.attribute("is_test", 0):
        site.refuse("it is in training mode (is_test is not set)")
    site.drop("is_test")


def _slope(site: Site) -> None:
    """A slope was one number or one per channel."""
    dims, found, rank = site.dims(1), site.array(1), site.rank(0)
    if dims is not None and all(dim == 1 for dim in dims):
        return
    if found is None or found.ndim != 1 or rank is None or rank < 2:
        site.refuse("its slope is not constant, or the rank of its input is not known")
    site.feed(1, found.reshape(-1, *[1] * (rank - 2)), "slope")


def _sequence(site: Site) -> None:
    site.drop("output_sequence")


def _gemm(site: Site) -> None:
    site.drop("broadcast")


def _upsample(site: Site) -> None:
    height, width = site.attribute("height_scale", 1.0), site.attribute("width_scale", 1.0)
    site.drop("height_scale", "width_scale")
    site.put(scales=[1.0, 1.0, height, width])


_BINARY = ("Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor")

SEVEN: dict[tuple[str, int], Callable[[Site], None]] = {
    ("BatchNormalization", 7): _test_mode,
    ("Dropout", 7): _test_mode,
    ("Gemm", 7): _gemm,
    ("PRelu", 7): _slope,
    ("Upsample", 7): _upsample,
    **{(name, 7): _broadcast for name in _BINARY},
    **{(name, 7): _sequence for name in ("GRU", "LSTM", "RNN")},
}
