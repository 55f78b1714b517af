"""Which nodes of a quantized model do the damage."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
