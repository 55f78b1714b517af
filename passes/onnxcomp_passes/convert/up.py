"""What has to be done to a node when the opset is raised over a version at which its operator changed.

Every change up to `REVIEWED` that is not listed here can be noticed by no valid older node: more types,
negative axes, optional inputs, new attributes whose default is the old behaviour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir.regions import leave_out_output
from onnxcomp.ir.renames import swap_names
from onnxcomp_passes.convert.up_seven import SEVEN

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxcomp_passes.convert.site import Site

# Up to this opset all changes were looked at; of a newer one nothing is known.
REVIEWED = 28
OLDEST = 6


def _axes_input(site: Site) -> None:
    axes = site.attribute("axes")
    if axes is not None and not len(axes):
        if site.node.op_type == "Squeeze":
            site.refuse("it names no axis, which readers take in different ways")
        if site.node.op_type != "Unsqueeze":  # a reduction over no axis is one over all
            site.drop("axes")
            return
    site.move({"axes": 1})


def _split_input(site: Site) -> None:
    site.move({"split": 1})


def _split_number(site: Site) -> None:
    if site.input(1) is None:
        site.put(num_outputs=len(site.node.outputs))


def _last_axis(site: Site) -> None:
    """The old operator flattens from `axis` on; the new one works along it."""
    axis = site.attribute("axis", 1)
    rank = site.rank(0)
    if axis == -1 or (rank is not None and axis == rank - 1):
        site.put(axis=-1)
        return
    dims = site.dims()
    if dims is not None and -len(dims) <= axis < len(dims):
        first = axis % len(dims)
        long = [index for index in range(first, len(dims)) if dims[index] != 1]
        if len(long) <= 1:
            site.put(axis=long[0] if long else first)
            return
    _flatten_around(site, axis)


def _flatten_around(site: Site, axis: int) -> None:
    source, node, edit = site.input(0), site.node, site.edit
    dims = site.dims()
    plain = dims is not None and all(isinstance(dim, int) and dim > 0 for dim in dims)
    if site.target < 14 and not plain:
        site.refuse(f"it works on everything from axis {axis} on, and its shape is not known")
    old = node.outputs[0]
    shape = edit.insert("Shape", [source], before=node).outputs[0]
    flat = edit.insert("Flatten", [source], before=node, attributes={"axis": axis}).outputs[0]
    edit.set_input(node, 0, flat)
    site.put(axis=-1)
    zero = {"allowzero": 1} if site.target >= 14 else {}
    back = edit.insert("Reshape", [flat, shape], after=node, attributes=zero, like=old)
    was_output = old.is_graph_output()
    edit.replace(old, back.outputs[0])
    edit.set_input(back, 0, old)
    edit.forget_shape(old)
    if not was_output:
        swap_names(edit, old, back.outputs[0])


def _clip(site: Site) -> None:
    bounds = {"min": 1, "max": 2}
    given = {name: site.attribute(name) for name in bounds}
    if any(number is not None for number in given.values()):
        kind = site.dtype()
        for name, number in given.items():
            if number is not None:
                _clip_bound(site, name, bounds[name], number, kind)


def _clip_bound(site: Site, name: str, index: int, number: float, kind: np.dtype) -> None:
    if kind.kind == "f" and abs(number) <= float(np.finfo(kind).max):
        site.feed(index, np.asarray(number, kind), name)
    elif kind.kind != "f" or not np.isfinite(np.float32(number)):
        site.refuse(f"its bound {name} is {number}")
    site.drop(name)  # a bound beyond the type's range is the default


def _pad(site: Site) -> None:
    value = site.attribute("value", 0.0)
    site.move({"pads": 1})
    if value:
        site.feed(2, np.asarray(value, site.dtype()), "value")
    site.drop("value")


def _slice(site: Site) -> None:
    site.move({"starts": 1, "ends": 2, "axes": 3})


def _top_k(site: Site) -> None:
    site.put(k=[site.attribute("k", 0)])
    site.move({"k": 1})


def _dropout(site: Site) -> None:
    """It is the identity on both sides, but the mask has another type or other contents."""
    if site.has_output(1):
        site.refuse("its mask is in use, which had other contents")
    if len(site.node.outputs) > 1 and site.node.outputs[1].name:
        leave_out_output(site.edit, site.node, 1)


def _dropout_ratio(site: Site) -> None:
    _dropout(site)
    site.drop("ratio")


def _spatial(site: Site) -> None:
    if site.attribute("spatial", 1) != 1:
        site.refuse("it normalises every place by itself (spatial = 0)")
    site.drop("spatial")


def _no_training(site: Site) -> None:
    if any(value.name for value in site.node.outputs[1:]):
        site.refuse("it is in training mode")


def _upsample_scales(site: Site) -> None:
    site.move({"scales": 1}, np.float32)


def _upsample(site: Site) -> None:
    if site.attribute("mode", "nearest") == "bilinear":
        site.put(mode="linear")
    site.edit.set_operator(site.node, "Resize")


def _resize_modes(site: Site) -> None:
    """The old operator had one way to map coordinates, which now has a name."""
    nearest = site.attribute("mode", "nearest") == "nearest"
    if nearest and site.original != "Upsample":
        scales = site.array(1)
        if scales is None or not all(_floors(float(scale)) for scale in scales.reshape(-1)):
            site.refuse("it may shrink its input, which was rounded in another way")
    site.edit.set_input(site.node, 2, site.input(1))
    if site.target < 13:
        site.feed(1, np.zeros(0, np.float32), "roi")
    else:
        site.edit.set_input(site.node, 1, None)
    site.put(coordinate_transformation_mode="asymmetric")
    if nearest:
        site.put(nearest_mode="floor")


def _floors(scale: float) -> bool:
    """Whether rounding up when shrinking and down when growing is the same as always down."""
    return scale >= 1 or (scale > 0 and (1 / scale).is_integer())


def _resize_inputs(site: Site) -> None:
    if site.attribute("coordinate_transformation_mode", "") == "tf_half_pixel_for_nn":
        site.refuse("the mode tf_half_pixel_for_nn is gone")
    both = site.input(2) is not None and site.input(3) is not None
    for index in (1, 2):
        found = site.array(index)
        if found is not None and not found.size:
            site.edit.set_input(site.node, index, None)
        elif both and index == 2:
            site.refuse("it has both scales and sizes")


def _roi_align(site: Site) -> None:
    if "coordinate_transformation_mode" not in site.node.attributes:
        site.put(coordinate_transformation_mode="output_half_pixel")


def _grid_sample(site: Site) -> None:
    names = {"bilinear": "linear", "bicubic": "cubic"}
    mode = site.attribute("mode", "bilinear")
    site.put(mode=names.get(mode, mode))


def _dft(site: Site) -> None:
    axis = site.attribute("axis", 1)
    site.feed(2, np.asarray(axis, np.int64), "axis")
    site.drop("axis")


def _one_hot(site: Site) -> None:
    indices = site.array(0)
    unsigned = site.dtype().kind == "u"
    if not unsigned and (indices is None or bool((indices < 0).any())):
        site.refuse("its indices may be negative, which means something else now")


def _scan(site: Site) -> None:
    site.refuse("Scan had a batch dimension up to opset 8")


def _scatter(site: Site) -> None:
    site.edit.set_operator(site.node, "ScatterElements")


REDUCTIONS = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
)

UP: dict[tuple[str, int], Callable[[Site], None]] = {
    ("BatchNormalization", 9): _spatial,
    ("BatchNormalization", 14): _no_training,
    ("Clip", 11): _clip,
    ("DFT", 20): _dft,
    ("Dropout", 10): _dropout,
    ("Dropout", 12): _dropout_ratio,
    ("GridSample", 20): _grid_sample,
    ("Hardmax", 13): _last_axis,
    ("LogSoftmax", 13): _last_axis,
    ("OneHot", 11): _one_hot,
    ("Pad", 11): _pad,
    ("ReduceSum", 13): _axes_input,
    ("Resize", 11): _resize_modes,
    ("Resize", 13): _resize_inputs,
    ("RoiAlign", 16): _roi_align,
    ("Scan", 9): _scan,
    ("Scatter", 11): _scatter,
    ("Slice", 10): _slice,
    ("Softmax", 13): _last_axis,
    ("Split", 13): _split_input,
    ("Split", 18): _split_number,
    ("Squeeze", 13): _axes_input,
    ("TopK", 10): _top_k,
    ("Unsqueeze", 13): _axes_input,
    ("Upsample", 9): _upsample_scales,
    ("Upsample", 10): _upsample,
    **{(name, 18): _axes_input for name in REDUCTIONS},
    **SEVEN,
}
