"""What has to be done to a node when the opset is lowered under a version at which its operator changed.

What is not listed here is judged by the two schemas alone: types, operands and attributes that the
older operator does not have must not be in use. Below opset 12 operators learned too much that no
schema shows (negative axes, broadcasting), so that is where lowering ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir.ops import constant, is_training
from onnxcomp_passes.convert.up import REDUCTIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxcomp_passes.convert.site import Site

LOWEST = 11


def _axes_attribute(site: Site) -> None:
    noop = site.attribute("noop_with_empty_axes", 0)
    axes = _to_attribute(site, "axes")
    if not axes and noop:
        site.refuse("it does nothing when there are no axes (noop_with_empty_axes)")
    if axes == []:
        site.drop("axes")
    site.drop("noop_with_empty_axes")


def _to_attribute(site: Site, name: str) -> list[int] | None:
    """Turns the constant input 1 into an attribute."""
    if site.input(1) is None:
        return None
    found = site.array(1)
    if found is None:
        site.refuse(f"its {name} are computed")
    numbers = [int(number) for number in found.reshape(-1)]
    site.edit.truncate_inputs(site.node, 1)
    site.put(**{name: numbers})
    return numbers


def _split_attribute(site: Site) -> None:
    _to_attribute(site, "split")


def _split_number(site: Site) -> None:
    number = site.attribute("num_outputs")
    if number is None:
        return
    dims, axis = site.dims(), site.attribute("axis", 0)
    size = dims[axis] if dims is not None and -len(dims) <= axis < len(dims) else None
    if not isinstance(size, int) or size % number:
        site.refuse("its pieces may differ in size")
    site.drop("num_outputs")


def _last_axis(site: Site) -> None:
    axis = site.attribute("axis", -1)
    rank = site.rank(0)
    if axis != -1 and (rank is None or axis % rank != rank - 1):
        site.refuse("it works along another axis than the last")
    site.put(axis=-1)


def _resize_inputs(site: Site) -> None:
    for index, wish in ((1, "roi"), (2, "scales")):
        if site.input(index) is None:
            site.feed(index, np.zeros(0, np.float32), wish)


def _resize_symmetric(site: Site) -> None:
    if site.attribute("coordinate_transformation_mode", "") == "half_pixel_symmetric":
        site.refuse("the mode half_pixel_symmetric does not exist there")


def _pad_wrap(site: Site) -> None:
    if site.attribute("mode", "constant") == "wrap":
        site.refuse("the mode wrap does not exist there")


def _scatter_reduction(site: Site) -> None:
    if site.attribute("reduction", "none") in {"min", "max"}:
        site.refuse("the reductions min and max do not exist there")


def _roi_align(site: Site) -> None:
    if site.attribute("coordinate_transformation_mode", "half_pixel") != "output_half_pixel":
        site.refuse("the mode half_pixel does not exist there")
    site.drop("coordinate_transformation_mode")


def _grid_sample(site: Site) -> None:
    if site.rank(0) != 4:
        site.refuse("its input is not known to have four dimensions")
    names = {"linear": "bilinear", "cubic": "bicubic"}
    mode = site.attribute("mode", "linear")
    site.put(mode=names.get(mode, mode))


def _dft(site: Site) -> None:
    rank, axis = site.rank(0), site.array(2)
    number = -2 if site.input(2) is None else None if axis is None else int(axis.reshape(-1)[0])
    if rank is None or number is None:
        site.refuse("its axis is not known")
    site.edit.truncate_inputs(site.node, 2)
    site.put(axis=number % rank)


def _batchnorm(site: Site) -> None:
    if is_training(site.node):
        site.refuse("it is in training mode")


def _dropout(site: Site) -> None:
    if is_training(site.node) or site.has_output(1):
        site.refuse("it is in training mode, or its mask is in use")
    site.edit.truncate_inputs(site.node, 1)
    site.drop("seed")


def _per_tensor(site: Site) -> None:
    if site.rank(1) != 0:
        site.refuse("its scale is not one number")
    site.drop("axis")


def _constant(site: Site) -> None:
    if "value" not in site.node.attributes and "sparse_value" not in site.node.attributes:
        tensor = constant(site.node.outputs[0])
        if tensor is None:
            site.refuse("its contents are not known")
        site.drop(*site.node.attributes)
        site.put(value=tensor.numpy())


def _reshape(site: Site) -> None:
    """A 0 in the shape meant to copy the dimension, always."""
    shape = site.array(1)
    if site.attribute("allowzero", 0) and shape is not None and bool((shape != 0).all()):
        site.drop("allowzero")


DOWN: dict[tuple[str, int], Callable[[Site], None]] = {
    ("BatchNormalization", 14): _batchnorm,
    ("Constant", 12): _constant,
    ("DFT", 20): _dft,
    ("DequantizeLinear", 13): _per_tensor,
    ("Dropout", 12): _dropout,
    ("GridSample", 20): _grid_sample,
    ("Hardmax", 13): _last_axis,
    ("LogSoftmax", 13): _last_axis,
    ("Pad", 19): _pad_wrap,
    ("QuantizeLinear", 13): _per_tensor,
    ("ReduceSum", 13): _axes_attribute,
    ("Reshape", 14): _reshape,
    ("Resize", 13): _resize_inputs,
    ("Resize", 19): _resize_symmetric,
    ("RoiAlign", 16): _roi_align,
    ("ScatterElements", 18): _scatter_reduction,
    ("ScatterND", 18): _scatter_reduction,
    ("Softmax", 13): _last_axis,
    ("Split", 13): _split_attribute,
    ("Split", 18): _split_number,
    ("Squeeze", 13): _axes_attribute,
    ("Unsqueeze", 13): _axes_attribute,
    **{(name, 18): _axes_attribute for name in REDUCTIONS},
}
