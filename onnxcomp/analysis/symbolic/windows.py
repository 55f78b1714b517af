"""Spatial dimensions: what windows that move over a tensor leave of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.analysis.symbolic import dims
from onnxcomp.ir.ops import array, attribute, constant, input_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.analysis.symbolic.dims import Item
    from onnxcomp.analysis.symbolic.known import Sizes
    from onnxcomp.ir import ir


def convolved(source: Sizes | None, node: ir.Node) -> Sizes | None:
    """Returns the dimensions of what a Conv makes; its weight must be constant."""
    weight = constant(input_at(node, 3 if node.op_type == "QLinearConv" else 1))
    if weight is None:
        return None
    shape = weight.shape.numpy()
    if len(shape) < 2 or (source is not None and len(source) != len(shape)):
        return None
    if source is None:
        return (None, int(shape[0]), *(None for _ in shape[2:]))
    return (source[0], int(shape[0]), *_spatial(source[2:], node, [int(k) for k in shape[2:]]))


def pooled(source: Sizes | None, node: ir.Node) -> Sizes | None:
    """Returns the dimensions of what a pooling operator makes."""
    kernel = attribute(node, "kernel_shape")
    if source is None or not isinstance(kernel, (list, tuple)) or len(kernel) != len(source) - 2:
        return None
    if attribute(node, "ceil_mode", 0) != 0:
        return (*source[:2], *(None for _ in kernel))
    return (*source[:2], *_spatial(source[2:], node, list(kernel)))


def pooled_whole(source: Sizes | None, node: ir.Node) -> Sizes | None:
    """Returns the dimensions of what a global pooling operator makes."""
    del node
    return None if source is None else (*source[:2], *(1 for _ in source[2:]))


def _spatial(source: Sizes, node: ir.Node, kernel: Sequence[int]) -> Sizes:
    rank = len(source)
    mode = attribute(node, "auto_pad", "NOTSET")
    pads = _list(node, "pads", [0] * (2 * rank))
    strides = _list(node, "strides", [1] * rank)
    dilations = _list(node, "dilations", [1] * rank)
    unclear = mode not in ("NOTSET", "VALID") or len(pads) != 2 * rank
    if unclear or len(strides) != rank or len(dilations) != rank or len(kernel) != rank:
        return tuple(None for _ in source)
    if mode == "VALID":
        pads = [0] * (2 * rank)
    return tuple(
        _places(item, pads[i] + pads[i + rank] - dilations[i] * (kernel[i] - 1) - 1, strides[i])
        for i, item in enumerate(source)
    )


def _places(item: Item, more: int, stride: int) -> Item:
    if stride < 1:
        return None
    return dims.add(dims.quotient(dims.add(item, more), stride), 1)


def spread(source: Sizes | None, node: ir.Node) -> Sizes | None:
    """Returns the dimensions of what a ConvTranspose makes."""
    weight = constant(input_at(node, 1))
    if weight is None or source is None:
        return None
    shape, rank = [int(dim) for dim in weight.shape.numpy()], len(source) - 2
    group = attribute(node, "group", 1)
    if len(shape) != len(source) or not isinstance(group, int):
        return None
    pads, strides = _list(node, "pads", [0] * (2 * rank)), _list(node, "strides", [1] * rank)
    dilations = _list(node, "dilations", [1] * rank)
    more = _list(node, "output_padding", [0] * rank)
    plain = (
        attribute(node, "auto_pad", "NOTSET") == "NOTSET" and "output_shape" not in node.attributes
    )
    if not plain or [len(pads), len(strides), len(dilations), len(more)] != [2 * rank, *[rank] * 3]:
        return (source[0], shape[1] * group, *(None for _ in range(rank)))
    spatial = []
    for i, item in enumerate(source[2:]):
        extent = more[i] + (shape[i + 2] - 1) * dilations[i] + 1 - pads[i] - pads[i + rank]
        steps = dims.multiply(dims.subtract(item, 1), strides[i])
        spatial.append(dims.add(steps, extent))
    return (source[0], shape[1] * group, *spatial)


def resized(source: Sizes | None, node: ir.Node) -> Sizes | None:
    """Returns the dimensions of what a Resize or Upsample by whole numbers makes."""
    at = 1 if node.op_type == "Upsample" or len(node.inputs) == 2 else 2
    scales = array(input_at(node, at), limit=16)
    if source is None or scales is None or scales.shape != (len(source),):
        return None
    if "axes" in node.attributes or input_at(node, 3) is not None:
        return None
    whole = [float(scale) for scale in scales]
    return tuple(
        dims.multiply(item, int(scale)) if scale.is_integer() and 1 <= scale < 1024 else None
        for item, scale in zip(source, whole, strict=True)
    )


def _list(node: ir.Node, name: str, default: list[int]) -> list[int]:
    found = attribute(node, name) if name in node.attributes else default
    return [int(item) for item in found] if isinstance(found, (list, tuple)) else []
