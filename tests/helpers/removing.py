"""Units of channels that are physically removed, against the same units masked for all who read them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx

from onnxcomp.analysis.channels import Channels
from onnxcomp.analysis.facts import Facts
from onnxcomp.analysis.shapes import Shapes
from onnxcomp.ir import Edit, Model, ir
from onnxcomp.ir.ops import constant
from onnxcomp_passes.prune.support.removal import Removal
from tests.helpers.numbers import run, seeded_feeds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxcomp.analysis.channels import ChannelMap, Group
    from onnxcomp.analysis.channels.space import Prefer
    from onnxcomp.passbase import Context

RECURRENT = frozenset({"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"})
Dead = list[np.ndarray]


@dataclass
class _Context:
    """As much of a pass's context as a removal needs."""

    model: Model
    edit: Edit = field(init=False)

    def __post_init__(self) -> None:
        self.edit = Edit(self.model)


def chosen(channels: ChannelMap, rng: np.random.Generator, *, mixed: bool) -> Dead:
    """Returns for each group which units go: about half, none of those that are mixed unless asked."""
    found = []
    for group in channels.groups:
        dead = rng.random(group.units) < 0.5
        dead[rng.integers(group.units)] = False
        found.append(dead & (mixed or not (group.mixed or group.scaled)))
    return found


def removed(model: Model, prefer: Prefer, dead: Dead) -> tuple[Model, int]:
    """Returns a copy without these units, and how many numbers went from weights."""
    copy = model.copy()
    facts = Facts(copy)
    context = _Context(copy)
    removal = Removal(cast("Context", context), facts.get(Shapes()))
    for group, gone in zip(facts.get(Channels(prefer)).groups, dead, strict=True):
        if gone.any():
            removal.drop(group, gone)
    return copy, removal.apply()


def masked(model: Model, prefer: Prefer, dead: Dead) -> Model:
    """Returns a copy in which everybody who sums over these units gets nothing from them."""
    copy = model.copy()
    facts = Facts(copy)
    channels = facts.get(Channels(prefer))
    gone = _positions(channels.groups, dead)
    edit = Edit(copy)
    shapes = facts.get(Shapes())
    for contraction in channels.contractions:
        sides = [key for key in (contraction.left, contraction.right) if key in gone]
        if not sides:
            continue
        open_sides = [key for key in sides if constant(key[0]) is None]
        if contraction.node.op_type in RECURRENT and sides[0][0] in contraction.node.outputs:
            _zero(edit, *contraction.right, gone[contraction.right])
        elif open_sides:
            value, axis = open_sides[0]
            shape = shapes.shape(value) or ()
            keep = np.ones(cast("int", shape[axis]), bool)
            keep[gone[value, axis]] = False
            keep = keep.reshape([-1] + [1] * (len(shape) - axis - 1))
            _cover(edit, contraction.node, value, keep)
        else:
            _zero(edit, *sides[0], gone[sides[0]])
    return copy


def _positions(groups: Sequence[Group], dead: Dead) -> Mapping[tuple[ir.Value, int], np.ndarray]:
    found: dict[tuple[ir.Value, int], list[np.ndarray]] = {}
    for group, gone in zip(groups, dead, strict=True):
        for member in group.members if gone.any() else ():
            places = member.positions[gone].reshape(-1)
            found.setdefault((member.value, member.axis), []).append(places)
    return {key: np.concatenate(places) for key, places in found.items()}


def _zero(edit: Edit, value: ir.Value, axis: int, places: np.ndarray) -> None:
    tensor = constant(value)
    assert tensor is not None
    rows = np.moveaxis(tensor.numpy().copy(), axis, 0)
    rows[places] = 0
    array = np.ascontiguousarray(np.moveaxis(rows, 0, axis))
    edit.set_tensor(value, ir.tensor(array, dtype=tensor.dtype))


def _cover(edit: Edit, node: ir.Node, value: ir.Value, keep: np.ndarray) -> None:
    """Puts zeros, or the zero point, where an operand holds what is to be masked."""
    graph = cast("ir.Graph", node.graph)
    mask = edit.initializer(keep, name="mask", graph=graph)
    for index, operand in enumerate(node.inputs):
        if operand is not value:
            continue
        zero = _zero_point(edit, node, index, value)
        made = edit.insert("Where", [mask, operand, zero], before=node)
        edit.set_input(node, index, made.outputs[0])


def _zero_point(edit: Edit, node: ir.Node, index: int, value: ir.Value) -> ir.Value:
    at = {"QLinearMatMul": index + 2, "QLinearConv": 2, "QGemm": 2}.get(node.op_type, index + 2)
    integers = {"ConvInteger", "MatMulInteger", "QLinearMatMul", "QLinearConv", "QGemm"}
    if node.op_type in integers:
        found = node.inputs[at]
        assert found is not None
        return found
    dtype = value.dtype or ir.DataType.FLOAT
    graph = cast("ir.Graph", node.graph)
    return edit.initializer(np.zeros((), dtype.numpy()), name="nothing", graph=graph)


def assert_removable(
    proto: onnx.ModelProto,
    *,
    prefer: Prefer = "large",
    seed: int = 0,
    feeds: Mapping[str, np.ndarray] | None = None,
    tolerance: float = 1e-5,
) -> int:
    """Fails unless units can be taken out of a model and nobody who does not read them sees it.

    Units that others depend on (a normalization runs over them) are removed as well, in another copy:
    that model must run and give outputs of the same shapes.

    Returns:
        How many numbers went from weights.
    """
    model = Model.load(proto)
    feeds = seeded_feeds(proto) if feeds is None else feeds
    channels = Facts(model.copy()).get(Channels(prefer))
    rng = np.random.default_rng(seed)
    dead = chosen(channels, rng, mixed=False)
    smaller, count = removed(model, prefer, dead)
    expected = run(masked(model, prefer, dead).to_proto(), feeds, "onnxruntime")
    _compare(expected, _checked(smaller, feeds), tolerance)
    dead = chosen(channels, rng, mixed=True)
    smallest, _ = removed(model, prefer, dead)
    _compare(expected, _checked(smallest, feeds), None)
    return count


def _checked(model: Model, feeds: Mapping[str, np.ndarray]) -> list[Any]:
    proto = model.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    return run(proto, feeds, "onnxruntime")


def _compare(expected: Sequence[Any], got: Sequence[Any], tolerance: float | None) -> None:
    for first, second in zip(expected, got, strict=True):
        assert first.shape == second.shape
        assert first.dtype == second.dtype
        if tolerance is not None and first.size:
            scale = max(float(np.abs(first.astype(np.float64)).max()), 1e-12)
            np.testing.assert_allclose(
                second.astype(np.float64) / scale,
                first.astype(np.float64) / scale,
                rtol=0,
                atol=tolerance,
            )
