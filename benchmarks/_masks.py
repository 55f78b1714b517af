"""Masks as training frameworks leave them; a program, for the interpreter that has onnxcomp.

    python _masks.py MODEL.onnx OUT.onnx coupled|layers RATIO

`layers` is what `torch.nn.utils.prune.ln_structured(layer, "weight", amount, n=2, dim=0)` writes for
every layer with a weight: the filters with the smallest norm become zero, biases and normalizations stay
as they are, and nothing is coordinated between layers. `coupled` zeroes channels that belong together
(through residual sums, concatenations and the like) wherever they are made, with all that makes them.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp import Model
from onnxcomp.analysis.channels import ChannelMap, Channels, Group
from onnxcomp.analysis.facts import Facts
from onnxcomp.ir import Edit, ir
from onnxcomp.ir.ops import array, attribute, constant, is_op

Array = np.ndarray[Any, Any]


def mask_layers(model: Model, ratio: float) -> int:
    """Each layer for itself; returns how many filters became zero."""
    edit, masked = Edit(model), 0
    seen: set[ir.Value] = set()
    for node in list(model.nodes()):
        weight = node.inputs[1] if is_op(node, "Conv", "ConvTranspose", "Gemm", "MatMul") else None
        found = array(weight)
        if weight is None or found is None or found.ndim < 2 or weight in seen:
            continue
        seen.add(weight)
        axis = _made_axis(node, found.ndim)
        rows = np.moveaxis(found, axis, 0).copy()
        order = np.argsort(np.square(rows.reshape(len(rows), -1)).sum(1), kind="stable")
        chosen = order[: round(ratio * len(rows))]
        rows[chosen] = 0
        masked += len(chosen)
        _store(edit, weight, np.moveaxis(rows, 0, axis))
    return masked


def _made_axis(node: ir.Node, rank: int) -> int:
    if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0)):
        return 0
    return 1 if node.op_type in {"ConvTranspose", "Gemm"} else rank - 1


def mask_coupled(model: Model, ratio: float) -> int:
    """Channels that belong together go together; returns how many there are."""
    channels = Facts(model).get(Channels())
    edit, masked = Edit(model), 0
    for group in channels.groups:
        makers = _makers(channels, group)
        if not makers or group.mixed:
            continue
        norms = sum(_norms(value, axis, places) for value, axis, places in makers)
        chosen = np.argsort(norms, kind="stable")[: int(ratio * group.units)]
        masked += len(chosen)
        for value, axis, places in makers:
            rows = _rows(value, axis).copy()
            rows[places[chosen].reshape(-1)] = 0
            _store(edit, value, np.moveaxis(rows, 0, axis))
    return masked


def _makers(channels: ChannelMap, group: Group) -> list[tuple[ir.Value, int, Array]]:
    return [
        (member.value, member.axis, member.positions)
        for member in group.members
        if (tensor := constant(member.value)) is not None
        and tensor.dtype.is_floating_point()
        and (member.value, member.axis) not in channels.consumers
    ]


def _norms(value: ir.Value, axis: int, places: Array) -> Array:
    rows = _rows(value, axis)
    squares: Array = np.square(rows.reshape(len(rows), -1).astype(np.float64)).sum(1)
    return np.asarray(squares[places].sum(1))


def _rows(value: ir.Value, axis: int) -> Array:
    found = array(value)
    if found is None:
        raise TypeError(f"{value.name} is no constant")
    return np.moveaxis(found, axis, 0)


def _store(edit: Edit, value: ir.Value, found: Array) -> None:
    new = np.ascontiguousarray(found)
    producer = value.producer()
    if producer is None:
        edit.set_tensor(value, new)
    else:
        edit.set_attribute(producer, "value", ir.tensor(new))


def main(source: str, out: str, kind: str, ratio: str) -> None:
    model = Model.load(Path(source))
    mask = mask_coupled if kind == "coupled" else mask_layers
    sys.stdout.write(str(mask(model, float(ratio))))
    model.save(Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
