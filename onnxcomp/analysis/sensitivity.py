"""Which nodes of a quantized model do the damage."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.compare import Reference, compare
from onnxcomp.ir import Edit
from onnxcomp.ir.ops import array, attribute, constant, input_at
from onnxcomp.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from onnxcomp.ir import Model, ir

# Bias correction moves a constant by more than the half step of rounding.
_ROUNDING_STEPS = 2.0
ROUNDING = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True)
class NodeDamage:
    """What the outputs gain when one node computes in float again.

    Attributes:
        name: The node.
        op_type: Its operator.
        noise: Noise of the outputs relative to their power with this node in float, all others as
            they are.
        gain: By how much that is less than with all nodes quantized; negative when errors had
            cancelled.
    """

    name: str
    op_type: str
    noise: float
    gain: float


def node_damage(
    original: Model,
    quantized: Model,
    samples: Iterable[Mapping[str, np.ndarray]],
    *,
    threads: int = 0,
    seconds: float = 30.0,
    progress: Callable[[float], None] | None = None,
) -> list[NodeDamage]:
    """Gives each quantized node its float weights and inputs back, one at a time, and looks at the outputs.

    Args:
        original: The float model; nodes have the same names as in the quantized one.
        quantized: The model made from it; not changed.
        samples: A few feeds.
        threads: Threads of a session.
        seconds: When to stop; nodes that were not reached are left out.
        progress: Called with the share that is done.

    Returns:
        Nodes of the main graph, the one whose return helps most first.
    """
    work = quantized.copy()
    floats = {node.name: node for node in original.graph if node.name}
    nodes = [node for node in quantized_nodes(work) if node.name in floats]
    found: list[NodeDamage] = []
    with Session.open(original, threads=threads) as session:
        reference = Reference(session, list(samples))
        everything = output_noise(reference, work, threads)
        end = time.monotonic() + seconds
        for index, node in enumerate(nodes):
            name = node.name or ""
            if time.monotonic() > end:
                break
            noise = _noise_without(work, node, floats[name], reference, threads)
            found.append(NodeDamage(name, node.op_type, noise, everything - noise))
            if progress is not None:
                progress((index + 1) / len(nodes))
    return sorted(found, key=lambda each: (-each.gain, each.name))


@dataclass(frozen=True)
class LayerSensitivity:
    """What one layer of a quantized model costs in accuracy and gains in time.

    Attributes:
        name: The node.
        op_type: Its operator.
        alone: How much worse the model gets when this layer alone is quantized.
        back: How much better the quantized model gets when this layer alone is float again.
        gain: Seconds that it saves in a run; negative when it takes longer than in float. None when the
            provider fused it into another layer's kernel.
    """

    name: str
    op_type: str
    alone: float
    back: float
    gain: float | None

    @property
    def damage(self) -> float:
        """The larger of both damages: errors may cancel out or add up."""
        return max(self.alone, self.back, 0.0)

    @property
    def price(self) -> float:
        """Damage for each second saved; infinite where no time is saved."""
        if not self.damage:
            return 0.0
        return self.damage / self.gain if self.gain is not None and self.gain > 0 else math.inf


@dataclass(frozen=True)
class Sensitivity:
    """What all layers cost and gain.

    Attributes:
        layers: The layers, the one with the most damage for the time it saves first.
        everything: Damage with all layers quantized.
        left: Layers that were not reached in time.
    """

    layers: tuple[LayerSensitivity, ...]
    everything: float
    left: int = 0

    def worth_skipping(self, share: float = 0.5) -> list[str]:
        """Returns the first layers that together make a share of the damage: names for `skip`."""
        total = sum(layer.damage for layer in self.layers)
        names: list[str] = []
        reached = 0.0
        for layer in self.layers:
            if reached >= share * total or not layer.damage:
                break
            names.append(layer.name)
            reached += layer.damage
        return names

    def to_json(self) -> dict[str, Any]:
        """Returns plain dictionaries, lists, numbers and texts."""
        rows = [
            {
                "name": layer.name,
                "op_type": layer.op_type,
                "alone": layer.alone,
                "back": layer.back,
                "damage": layer.damage,
                "gain_seconds": layer.gain,
            }
            for layer in self.layers
        ]
        return {"everything": self.everything, "left": self.left, "layers": rows}


def layer_sensitivity(
    original: Model,
    quantized: Model,
    judge: Callable[[Model], float],
    gains: Mapping[str, float],
    *,
    seconds: float = 120.0,
    progress: Callable[[float], None] | None = None,
) -> Sensitivity:
    """Judges the model with each layer alone quantized, and with each alone in float.

    Args:
        original: The float model; nodes have the same names as in the quantized one.
        quantized: The model made from it; not changed.
        judge: How much worse a model is than the original.
        gains: Seconds that nodes save, by name.
        seconds: When to stop.
        progress: Called with the share that is done.
    """
    floats = {node.name: node for node in original.graph if node.name}
    mixed = _Mixed(quantized.copy(), floats)
    everything, nothing = judge(mixed.model), mixed.judged(judge, mixed.nodes)
    end = time.monotonic() + seconds
    found: list[LayerSensitivity] = []
    for index, node in enumerate(mixed.nodes):
        if time.monotonic() > end:
            break
        others = [other for other in mixed.nodes if other is not node]
        alone = mixed.judged(judge, others) - nothing
        back = everything - mixed.judged(judge, [node])
        name = node.name or ""
        found.append(LayerSensitivity(name, node.op_type, alone, back, gains.get(name)))
        if progress is not None:
            progress((index + 1) / len(mixed.nodes))
    rows = sorted(found, key=lambda row: (-row.price, -row.damage, row.name))
    return Sensitivity(tuple(rows), everything, len(mixed.nodes) - len(found))


class _Mixed:
    """A quantized model some of whose layers can be given their float inputs back."""

    def __init__(self, model: Model, floats: Mapping[str, ir.Node]) -> None:
        self.model = model
        self._floats = floats
        self._edit = Edit(model)
        self.nodes = [node for node in quantized_nodes(model) if node.name in floats]

    def judged(self, judge: Callable[[Model], float], in_float: Sequence[ir.Node]) -> float:
        """Judges the model with some layers in float."""
        self._edit.begin()
        for node in in_float:
            float_node = self._floats[node.name or ""]
            for index, value in enumerate(node.inputs):
                exact = _exact(self.model, self._edit, value, input_at(float_node, index))
                if exact is not None:
                    self._edit.set_input(node, index, exact)
        found = judge(self.model)
        self._edit.rollback()
        return found


def output_noise(reference: Reference, model: Model, threads: int) -> float:
    """Returns the power of the error of the worst output relative to its signal."""
    with Session.open(model, threads=threads) as session:
        worst = compare(reference, session).worst("sqnr_db")
    return 0.0 if worst is None else float(10 ** (-worst / 10))


def quantized_nodes(model: Model) -> list[ir.Node]:
    """Returns the nodes of the main graph that read dequantized values, in order."""
    return [
        node
        for node in model.graph
        if node.op_type not in ROUNDING and any(_rounding(value) for value in node.inputs)
    ]


def _noise_without(
    work: Model, node: ir.Node, float_node: ir.Node, reference: Reference, threads: int
) -> float:
    edit = Edit(work)
    edit.begin()
    for index, value in enumerate(node.inputs):
        exact = _exact(work, edit, value, input_at(float_node, index))
        if exact is not None:
            edit.set_input(node, index, exact)
    noise = output_noise(reference, work, threads)
    edit.rollback()
    return noise


def _exact(
    work: Model, edit: Edit, value: ir.Value | None, float_value: ir.Value | None
) -> ir.Value | None:
    """What a node would read without the rounding of an input; None where nothing is rounded."""
    rounding = _rounding(value)
    if rounding is None:
        return None
    numbers = rounding.inputs[0]
    maker = None if numbers is None else numbers.producer()
    if maker is not None and maker.op_type == "QuantizeLinear":
        return maker.inputs[0]
    tensor = constant(float_value)
    if tensor is None or not _rounds(rounding, tensor.numpy()):
        return None
    return edit.initializer(np.asarray(tensor.numpy()), name="exact", graph=work.graph)


def _rounds(rounding: ir.Node, exact: np.ndarray) -> bool:
    """Whether a constant is a float one, rounded: quantizing may have scaled or merged weights before."""
    numbers, scale, zero = (array(input_at(rounding, index)) for index in range(3))
    if numbers is None or scale is None or numbers.shape != exact.shape:
        return False
    steps = _along(scale, rounding, numbers.ndim).astype(np.float64)
    shift = 0 if zero is None else _along(zero, rounding, numbers.ndim).astype(np.float64)
    values = (numbers.astype(np.float64) - shift) * steps
    return bool((np.abs(values - exact) <= _ROUNDING_STEPS * steps).all())


def _along(values: np.ndarray, rounding: ir.Node, rank: int) -> np.ndarray:
    if values.size == 1:
        return values.reshape(())
    shape = [1] * rank
    shape[attribute(rounding, "axis", 1)] = -1
    return values.reshape(shape)


def _rounding(value: ir.Value | None) -> ir.Node | None:
    maker = None if value is None else value.producer()
    return maker if maker is not None and maker.op_type == "DequantizeLinear" else None


def most_harmful(damages: Sequence[NodeDamage], share: float) -> list[str]:
    """Returns the nodes that together account for a share of all the gain there is."""
    helpful = [damage for damage in damages if damage.gain > 0]
    total = sum(damage.gain for damage in helpful)
    names: list[str] = []
    reached = 0.0
    for damage in helpful:
        if reached >= share * total:
            break
        names.append(damage.name)
        reached += damage.gain
    return names
