"""Random valid models across all standard operators and their versions, each from a seed.

Nodes are tried in onnxruntime when they are drawn, for several sizes of the open dimensions, so the
model as a whole runs. Which cells of operator and version were drawn is counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from tests.helpers.drawn import control, elementwise, layout, misc, neural
from tests.helpers.drawn.core import (
    OPSETS,
    RUNTIME_ERRORS,
    WHOLE,
    WORLDS,
    Drawing,
    RefusedError,
    Source,
    Value,
    assembled,
    element_type,
    least_ir,
    open_session,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MAKERS: dict[str, Callable[[Drawing, str], object]] = {
    **elementwise.MAKERS, **layout.MAKERS, **neural.MAKERS, **misc.MAKERS, **control.MAKERS,
}  # fmt: skip
OPERATORS = tuple(sorted(MAKERS))
VARIANTS = ("ordinary", "other sizes", "sizes of one", "awkward", "tiny", "large", "not finite")


@dataclass(frozen=True)
class Drawn:
    """A model with what is needed to feed it."""

    seed: int
    proto: onnx.ModelProto
    sources: tuple[Source, ...]
    tally: dict[str, int] = field(default_factory=dict)
    # Defaults of inputs that may be overridden.
    defaults: dict[str, np.ndarray] = field(default_factory=dict)

    def feeds(self, variant: str) -> dict[str, np.ndarray]:
        """Inputs of a kind; the same every time."""
        index = VARIANTS.index(variant)
        rng = np.random.default_rng((self.seed, index))
        world = index if index < len(WORLDS) else 0
        feeds = {source.name: _contents(source, world, variant, rng) for source in self.sources}
        if variant == "other sizes":
            feeds |= {name: _override(array) for name, array in self.defaults.items()}
        return feeds


def _override(array: np.ndarray) -> np.ndarray:
    """Another value for an input that has a default."""
    return np.asarray(array + np.ones((), array.dtype)) if array.dtype.kind == "f" else array


_AWKWARD = (0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40, 1e-7, -3.5, 2.5, 0.5, -0.5, 6.0, -3.0, 3.0, 100.0)
_LARGE = (1e30, -1e30, 3e38, -1e20, 65504.0, 1e6)


def _contents(source: Source, world: int, variant: str, rng: np.random.Generator) -> np.ndarray:
    array = source.array(world, rng)
    if source.bound or array.dtype.kind not in "fiu" or not array.size:
        return array
    if variant in {"ordinary", "other sizes", "sizes of one"}:
        return array
    if array.dtype.kind in "iu":
        ends = np.iinfo(array.dtype)
        special: Any = np.array([ends.max, ends.min, 0, 1], array.dtype)
        return _mixed(array, special, rng) if variant in {"large", "awkward"} else array
    finite = np.finfo(array.dtype)
    numbers = {
        "awkward": np.array(_AWKWARD),
        "tiny": np.array([1e-40, -1e-40, 1e-45, -0.0, 0.0, 1e-38]),
        "large": np.clip(_LARGE, float(finite.min), float(finite.max)),
        "not finite": np.array([np.nan, np.inf, -np.inf]),
    }[variant]
    with np.errstate(all="ignore"):
        return _mixed(array, numbers.astype(array.dtype), rng)


def _mixed(array: np.ndarray, special: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    share = rng.choice([0.1, 0.5, 1.0])
    chosen = rng.random(array.shape) < share
    return np.where(chosen, rng.choice(special, array.shape), array).astype(array.dtype)


def step(d: Drawing) -> None:
    """Draws an operator or a pattern; what does not run is tried in another way."""
    from tests.helpers.drawn.idioms import IDIOMS

    for _ in range(4):
        try:
            if d.chance(0.4):
                d.choice(IDIOMS)(d)
            else:
                _operator(d, str(d.choice(OPERATORS)))
        except RefusedError:
            continue
        return


def _operator(d: Drawing, op_type: str) -> None:
    d.since(op_type)
    for attempt in range(3):
        try:
            MAKERS[op_type](d, op_type)
        except RefusedError:
            if attempt == 2:
                raise
        else:
            return


def draw_any(seed: int, steps: int = 12, operator: str = "", opset: int = 0) -> Drawn:
    """Returns the model of a seed.

    Args:
        seed: Makes the model.
        steps: How many operators or patterns are drawn.
        operator: One that is drawn first.
        opset: Fixes the version of the operator set.
    """
    drawn = _attempt((seed, 0), steps, operator, opset)
    for attempt in range(1, 9):
        if _runs(drawn):
            break
        drawn = _attempt((seed, attempt), steps, operator, opset)
    return drawn


def _attempt(seed: tuple[int, int], steps: int, operator: str, opset: int) -> Drawn:
    rng = np.random.default_rng(seed)
    d = Drawing(rng, opset or int(rng.choice(OPSETS)))
    with np.errstate(all="ignore"):
        if operator:
            _operator(d, operator)
        while not any(node.op_type != "Constant" for node in d.nodes) or steps > 0:
            step(d)
            steps -= 1
    return _finish(d, seed[0])


def _runs(drawn: Drawn) -> bool:
    """Whether the whole does what its parts did: inference over all of it may know more."""
    try:
        session = open_session(drawn.proto)
        for variant in VARIANTS[: len(WORLDS)]:
            session.run(None, drawn.feeds(variant))
    except RUNTIME_ERRORS:
        return False
    return True


def _finish(d: Drawing, seed: int) -> Drawn:
    read = {name for node in d.nodes for name in node.input} | _captured(d.nodes)
    made = {name for node in d.nodes for name in node.output}
    tensors = [
        v for v in d.pool
        if isinstance(v.worlds[0], np.ndarray) and v.name in made and len({a.ndim for a in v.worlds}) == 1
    ]  # fmt: skip
    ends = [v for v in tensors if v.name not in read or d.chance(0.08)]
    ends = [v for v in ends if d.chance(0.9)] or tensors[-1:]
    outputs = [_declared(v, d) for v in {v.name: v for v in ends}.values()]
    infos = [
        helper.make_tensor_value_info(source.name, element_type(_dtype(source)), list(source.dims))
        for source in d.sources
    ]
    defaults = [t for t in d.tensors.values() if t.name in d.overridable]
    infos += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in defaults]
    ir_version = (
        least_ir(d.opset) if d.functions or d.chance(0.5) else max(4, least_ir(d.opset) - 1)
    )
    if d.opset < 19 and not d.functions and d.chance(0.1):
        ir_version = 4
    proto = assembled(
        d.nodes, infos, outputs, list(d.tensors.values()), d.opset, d.functions, ir_version
    )
    proto.metadata_props.add(key="seed", value=str(seed))
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in defaults}
    return Drawn(seed, proto, tuple(d.sources), d.tally, arrays)


def _captured(nodes: list[onnx.NodeProto]) -> set[str]:
    from tests.helpers.drawn.core import _free_names

    return _free_names(nodes)


def _dtype(source: Source) -> np.dtype[Any]:
    return np.dtype(object) if source.dtype == "str" else np.dtype(source.dtype)


def _declared(value: Value, d: Drawing) -> onnx.ValueInfoProto:
    """An output as a model declares it: exactly or openly."""
    dims: Any = [None] * value.rank
    if d.chance(0.4):
        sizes = [{a.shape[i] for a in value.worlds} for i in range(value.rank)]
        dims = [next(iter(s)) if len(s) == 1 else None for s in sizes]
    return helper.make_tensor_value_info(value.name, element_type(value.dtype), dims)


__all__ = ["OPERATORS", "OPSETS", "VARIANTS", "WHOLE", "Drawn", "draw_any", "step"]
