"""Which nodes of a quantized model add the noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from onnxcomp.ir import Model, ir

# Errors spread downstream; a node counts as a source only for what it adds to its inputs' noise.
_TINY = 1e-30


@dataclass(frozen=True)
class NodeNoise:
    """How much noise a node adds.

    Attributes:
        name: The node.
        op_type: Its operator.
        noise: Power of the error of its output relative to the output's power.
        added: The part of it that its inputs do not have already.
    """

    name: str
    op_type: str
    noise: float
    added: float


def node_noise(
    original: Model,
    quantized: Model,
    samples: Iterable[Mapping[str, np.ndarray]],
    *,
    threads: int = 0,
) -> list[NodeNoise]:
    """Compares every activation that two models share, and ranks the nodes by what they add.

    Both models run with the runtime's rewrites off, so that the values keep their names; a
    quantized value is looked at before it is rounded itself.

    Args:
        original: The float model.
        quantized: The model made from it; nodes and values keep their names.
        samples: A few feeds.
        threads: Threads of a session.

    Returns:
        The nodes of the main graph whose inputs are quantized, the noisiest first.
    """
    nodes = _quantized_nodes(quantized)
    shared = _shared_names(original, quantized)
    wanted = {value.name for node in nodes for value in (*node.outputs, *_sources(node))}
    taps = sorted(name for name in wanted & shared if name)
    ratios = _noise_ratios(original, quantized, taps, samples, threads)
    found = []
    for node in nodes:
        noise = ratios.get(node.outputs[0].name or "", 0.0)
        before = max((ratios.get(value.name or "", 0.0) for value in _sources(node)), default=0.0)
        found.append(NodeNoise(node.name or "", node.op_type, noise, max(noise - before, 0.0)))
    return sorted(found, key=lambda each: (-each.added, each.name))


def _quantized_nodes(model: Model) -> list[ir.Node]:
    return [
        node
        for node in model.graph
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"} and any(_dequantized(node))
    ]


def _dequantized(node: ir.Node) -> list[ir.Node]:
    makers = [value.producer() for value in node.inputs if value is not None]
    return [maker for maker in makers if maker is not None and maker.op_type == "DequantizeLinear"]


def _sources(node: ir.Node) -> list[ir.Value]:
    """The values that the activations of a node had before they were rounded."""
    found = []
    for maker in _dequantized(node):
        numbers = maker.inputs[0]
        rounding = numbers.producer() if numbers is not None else None
        if rounding is not None and rounding.op_type == "QuantizeLinear" and rounding.inputs[0]:
            found.append(rounding.inputs[0])
    return found


def _shared_names(original: Model, quantized: Model) -> set[str]:
    names = [
        {value.name for node in model.graph for value in node.outputs if value.name}
        for model in (original, quantized)
    ]
    return names[0] & names[1]


def _noise_ratios(
    original: Model,
    quantized: Model,
    taps: Sequence[str],
    samples: Iterable[Mapping[str, np.ndarray]],
    threads: int,
) -> dict[str, float]:
    outputs = {value.name for value in original.graph.outputs}
    extra = [name for name in taps if name not in outputs]
    signal = dict.fromkeys(taps, 0.0)
    error = dict.fromkeys(taps, 0.0)
    with (
        Session.open(original, threads=threads, optimization="disable", outputs=extra) as clean,
        Session.open(quantized, threads=threads, optimization="disable", outputs=extra) as noisy,
    ):
        for feeds in samples:
            expected, actual = clean.run(feeds), noisy.run(feeds)
            for name in taps:
                _add(signal, error, name, expected.get(name), actual.get(name))
    return {name: error[name] / max(signal[name], _TINY) for name in taps}


def _add(
    signal: dict[str, float], error: dict[str, float], name: str, expected: object, actual: object
) -> None:
    if not isinstance(expected, np.ndarray) or expected.dtype.kind != "f":
        return
    if not isinstance(actual, np.ndarray) or actual.shape != expected.shape:
        return
    exact = expected.astype(np.float64)
    signal[name] += float((exact**2).sum())
    error[name] += float(((actual - exact) ** 2).sum())
