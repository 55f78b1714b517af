"""A model that grows node by node: each node is run where it is drawn, so that the whole surely runs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Shape = tuple[int, ...]
Dims = tuple[int | str, ...]
# Every value is computed for several sizes of the symbols; what does not run for each is not drawn.
WORLDS: tuple[dict[str, int], ...] = ({"N": 3, "M": 2}, {"N": 2, "M": 4}, {"N": 1, "M": 1})
OPSETS = tuple(range(7, 26))
MOST_ELEMENTS = 4096
FLOATS = ("float32", "float64", "float16")
WHOLE = ("int64", "int32", "int8", "uint8", "int16", "uint16", "uint32", "uint64")
RUNTIME_ERRORS: tuple[type[Exception], ...] = tuple(
    kind
    for kind in vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
    if isinstance(kind, type) and issubclass(kind, Exception)
)

_TRIAL_ERRORS: tuple[type[Exception], ...] = (*RUNTIME_ERRORS, RuntimeError, ValueError, TypeError)


class RefusedError(Exception):
    """A node that was tried does not run, or nothing fits it."""


@dataclass(frozen=True)
class Value:
    """Something in the graph: a tensor or a sequence, with what it is in each world."""

    name: str
    worlds: tuple[Any, ...]
    constant: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        found: np.dtype[Any] = self.worlds[0].dtype
        return found

    @property
    def shape(self) -> Shape:
        found: Shape = self.worlds[0].shape
        return found

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_fixed(self) -> bool:
        """Whether its shape is the same in every world."""
        return len({array.shape for array in self.worlds}) == 1

    @property
    def kind(self) -> str:
        return "O" if self.dtype.kind in "OUS" else self.dtype.kind


@dataclass(frozen=True)
class Source:
    """An input of the model."""

    name: str
    dtype: str
    dims: Dims
    # Whole numbers below this; 0 for data that may be anything.
    bound: int = 0
    positive: bool = False

    def shape(self, world: int) -> Shape:
        return tuple(WORLDS[world][dim] if isinstance(dim, str) else dim for dim in self.dims)

    def array(self, world: int, rng: np.random.Generator) -> np.ndarray:
        """Ordinary contents."""
        return ordinary(rng, self.dtype, self.shape(world), self.bound, positive=self.positive)


def ordinary(
    rng: np.random.Generator, dtype: str, shape: Shape, bound: int = 0, *, positive: bool = False
) -> np.ndarray:
    """Contents without surprises."""
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype == "str":
        return np.asarray(rng.choice(["", "a", "bc", "A b"], shape), object).reshape(shape)
    if dtype in WHOLE:
        low = 0 if bound or positive or dtype.startswith("u") else -5
        return rng.integers(low, bound or 6, shape).astype(dtype)
    numbers = rng.normal(size=shape) * 1.5
    if rng.random() < 0.2:
        numbers = np.round(numbers)
    return np.asarray((np.abs(numbers) + 0.1) if positive else numbers).astype(dtype)


@dataclass
class Drawing:
    """A scope while it is drawn: the model's graph, or a body inside."""

    rng: np.random.Generator
    opset: int
    outer: Drawing | None = None
    in_function: bool = False
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: dict[str, onnx.TensorProto] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    pool: list[Value] = field(default_factory=list)
    overridable: set[str] = field(default_factory=set)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    counter: list[int] = field(default_factory=lambda: [0])
    tally: dict[str, int] = field(default_factory=dict)

    # -- small things

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high))

    def choice(self, items: Sequence[Any]) -> Any:
        return items[int(self.rng.integers(len(items)))]

    def real(self, low: float = -2.0, high: float = 2.0) -> float:
        return float(np.float32(self.rng.uniform(low, high)))

    def name(self, base: str = "v") -> str:
        self.counter[0] += 1
        return f"{base}{self.counter[0]}{self.choice(['', '', '', '_1', '_folded', '/fused'])}"

    def since(self, op_type: str) -> int:
        """The version of an operator's definition; refuses what this opset does not have."""
        found = _since(op_type, self.opset)
        if not found:
            raise RefusedError(op_type)
        return found

    @property
    def depth(self) -> int:
        return 0 if self.outer is None else self.outer.depth + 1

    def scope(self, *, in_function: bool = False) -> Drawing:
        """A body inside this scope."""
        return Drawing(
            self.rng, self.opset, self, in_function, functions=self.functions,
            counter=self.counter, tally=self.tally,
        )  # fmt: skip

    # -- values

    def visible(self) -> list[Value]:
        if self.outer is None or self.in_function:
            return list(self.pool)
        return [*self.outer.visible(), *self.pool]

    def find(self, fits: Callable[[Value], bool]) -> Value:
        """One of the values that fit, newer ones more often."""
        found = [value for value in self.visible() if not _is_sequence(value) and fits(value)]
        if not found:
            raise RefusedError("nothing fits")
        weights = np.arange(1, len(found) + 1, dtype=float) ** 2
        return found[int(self.rng.choice(len(found), p=weights / weights.sum()))]

    def tensor(
        self,
        kinds: Iterable[str] = ("float32",),
        ranks: Iterable[int] = (0, 1, 2, 3, 4),
        *,
        fits: Callable[[Value], bool] = lambda value: True,
        fresh: float = 0.15,
        least: int = 0,
    ) -> Value:
        """A value of one of the types and ranks: one that there is, or a new one."""
        kinds, ranks = tuple(kinds), tuple(ranks)

        def all_fit(value: Value) -> bool:
            return (
                _type_name(value.dtype) in kinds
                and value.rank in ranks
                and min(min(array.shape, default=1) for array in value.worlds) >= least
                and fits(value)
            )

        if not self.chance(fresh):
            with suppress(RefusedError):
                return self.find(all_fit)
        made = self.new(str(self.choice(kinds)), self.dims(int(self.choice(ranks)), least))
        if not all_fit(made):
            return self.find(all_fit)
        return made

    def dims(self, rank: int, least: int = 0) -> Dims:
        sizes: list[int | str] = [
            int(self.rng.choice([0, 1, 2, 3, 4, 5], p=[0.02, 0.2, 0.22, 0.22, 0.2, 0.14]))
            for _ in range(rank)
        ]
        sizes = [max(int(size), least, 0) for size in sizes]
        if rank and least < 2 and self.chance(0.5):
            sizes[0] = "N"
            if rank > 1 and self.chance(0.3):
                sizes[self.integer(1, rank)] = str(self.choice(["M", "N"]))
        return tuple(sizes)

    def new(self, dtype: str, dims: Dims, *, bound: int = 0, positive: bool = False) -> Value:
        """A new input, or a weight where the shape is fixed."""
        is_open = any(isinstance(dim, str) for dim in dims)
        if self.in_function and is_open:
            raise RefusedError("a function has no inputs of its own")
        if is_open or (not self.in_function and self.chance(0.5)):
            return self.root().add_input(dtype, dims, bound=bound, positive=positive)
        shape = tuple(int(dim) for dim in dims)
        array = ordinary(self.rng, dtype, shape, bound, positive=positive)
        if self.chance(0.15) and dtype in FLOATS:
            array = np.full_like(array, self.choice([1.0, 2.0] if positive else [0.0, 1.0, -0.0]))
        return self.weight(array, overridable=0.1)

    def root(self) -> Drawing:
        return self if self.outer is None else self.outer.root()

    def add_input(self, dtype: str, dims: Dims, *, bound: int = 0, positive: bool = False) -> Value:
        source = Source(self.name("x"), dtype, dims, bound, positive)
        self.sources.append(source)
        value = Value(source.name, tuple(source.array(i, self.rng) for i in range(len(WORLDS))))
        self.pool.append(value)
        return value

    def weight(self, array: np.ndarray | list[Any], *, overridable: float = 0.0) -> Value:
        """A constant: an initializer here or further out, or a Constant node."""
        array = np.asarray(array, np.float32) if isinstance(array, list) else array
        tensor = _to_tensor(array)
        value = Value(self.name("w"), (array,) * len(WORLDS), constant=True)
        plain = self.opset >= 9 or array.dtype.kind == "f"
        if self.in_function and not plain:
            raise RefusedError("Constant makes only floats before opset 9")
        if self.in_function or (plain and self.chance(0.15)):
            self.nodes.append(self._constant(value.name, tensor, array))
        else:
            tensor.name = value.name
            place = self.root() if self.chance(0.3) else self
            place.tensors[value.name] = tensor
            if place.outer is None and self.chance(overridable):
                place.overridable.add(value.name)
                value = Value(value.name, value.worlds)
        return value

    def _constant(self, name: str, tensor: onnx.TensorProto, array: np.ndarray) -> onnx.NodeProto:
        self.count("Constant")
        if self.opset >= 12 and self.chance(0.4) and array.ndim < 2 and array.size:
            items = array.tolist()
            form = {"int64": "value_int", "float32": "value_float"}.get(str(array.dtype))
            if form:
                form += "s" if array.ndim else ""
                return helper.make_node("Constant", [], [name], **{form: items})
        return helper.make_node("Constant", [], [name], value=tensor)

    def ints(self, *numbers: int, dtype: str = "int64") -> str:
        return self.weight(np.array(numbers, dtype)).name

    def scalar(self, number: float, dtype: Any = "float32") -> str:
        return self.weight(np.array(number, dtype)).name

    # -- nodes

    def count(self, op_type: str, domain: str = "") -> None:
        version = 0 if domain else _since(op_type, self.opset)
        key = f"{domain + '::' if domain else ''}{op_type}-{version}"
        self.tally[key] = self.tally.get(key, 0) + 1

    def make(
        self, op_type: str, inputs: Sequence[str], outputs: int = 1, domain: str = "", **attrs: Any
    ) -> onnx.NodeProto:
        """A node that is not yet part of the graph."""
        inputs = list(inputs)
        while inputs and not inputs[-1]:
            inputs.pop()
        names = [self.name() for _ in range(outputs)]
        title = self.name("n") if self.chance(0.6) else ""
        kept = {name: value for name, value in attrs.items() if value is not None and value != []}
        return helper.make_node(op_type, inputs, names, title, domain=domain, **kept)

    def node(
        self, op_type: str, inputs: Sequence[str], outputs: int = 1, domain: str = "", **attrs: Any
    ) -> list[Value]:
        """Adds a node if it runs in every world; its outputs may be used from then on."""
        return self.group([self.make(op_type, inputs, outputs, domain, **attrs)])

    def one(self, op_type: str, inputs: Sequence[str], **attrs: Any) -> Value:
        return self.node(op_type, inputs, **attrs)[0]

    def group(self, nodes: list[onnx.NodeProto], ends: Sequence[str] = ()) -> list[Value]:
        """Adds several nodes at once, for values in between that NumPy cannot hold."""
        for node in nodes:
            if not node.domain:
                self.since(node.op_type)
        names = list(ends) or [name for name in nodes[-1].output if name]
        made = self.trial(nodes, names)
        self.nodes.extend(nodes)
        for node in nodes:
            self.count(node.op_type, node.domain)
        self.pool.extend(made)
        return made

    def trial(self, nodes: list[onnx.NodeProto], names: list[str]) -> list[Value]:
        """Runs nodes in every world."""
        known = self._known()
        read = sorted(_free_names(nodes))
        if missing := [name for name in read if name not in known]:
            raise RefusedError(f"unknown {missing}")
        values = [known[name] for name in read]
        constants = [value for value in values if value.constant]
        infos = [_info(value.name, value) for value in values if not value.constant]
        weights = [_to_tensor(value.worlds[0], value.name) for value in constants]
        ends = [onnx.ValueInfoProto(name=name) for name in names]
        proto = assembled(nodes, infos, ends, weights, self.opset, self.functions)
        outcomes = []
        try:
            session = open_session(proto)
            for index in range(len(WORLDS)):
                feeds = {v.name: v.worlds[index] for v in values if not v.constant}
                outcomes.append(session.run(names, feeds))
        except _TRIAL_ERRORS as error:
            raise RefusedError(str(error)) from None
        made = [
            Value(name, tuple(outcome[i] for outcome in outcomes)) for i, name in enumerate(names)
        ]
        for value in made:
            for found in value.worlds:
                _check_contents(found)
        return made

    def _known(self) -> dict[str, Value]:
        known = {} if self.outer is None or self.in_function else self.outer._known()
        for name, tensor in self.tensors.items():
            array = numpy_helper.to_array(tensor)
            known[name] = Value(name, (array,) * len(WORLDS), name not in self.overridable)
        for node in self.nodes:
            if node.op_type == "Constant" and not node.domain:
                array = _constant_array(node)
                known[node.output[0]] = Value(node.output[0], (array,) * len(WORLDS), constant=True)
        known |= {value.name: value for value in self.pool}
        return known


def assembled(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto],
    opset: int,
    functions: Sequence[onnx.FunctionProto] = (),
    ir_version: int = 0,
) -> onnx.ModelProto:
    """A model of these parts, with the versions of every domain it may use."""
    graph = helper.make_graph(nodes, "drawn", inputs, outputs, weights)
    domains = sorted(
        {f.domain for f in functions}
        | used_domains([*nodes, *(n for f in functions for n in f.node)])
    )
    versions = {"ai.onnx.ml": 1, "com.microsoft": 1}
    imports = [helper.make_opsetid(domain, versions.get(domain, 1)) for domain in ["", *domains]]
    imports[0].version = opset
    return helper.make_model(
        graph, opset_imports=imports, functions=functions, ir_version=ir_version or least_ir(opset)
    )


def used_domains(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Domains beside the standard one, bodies included."""
    found = set()
    for node in nodes:
        found |= {node.domain} if node.domain else set()
        for attribute in node.attribute:
            found |= used_domains(attribute.g.node)
    return found


def least_ir(opset: int) -> int:
    """An IR version that has functions and all that the opset needs."""
    return 8 if opset < 19 else 10 if opset < 23 else 11


def open_session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session that rewrites nothing."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@cache
def _since(op_type: str, opset: int) -> int:
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return 0
    return 0 if schema.deprecated else schema.since_version


def _is_sequence(value: Value) -> bool:
    return isinstance(value.worlds[0], list) or value.worlds[0] is None


def _type_name(dtype: np.dtype[Any]) -> str:
    return "str" if dtype.kind in "OUS" else str(dtype)


def _to_tensor(array: np.ndarray, name: str = "") -> onnx.TensorProto:
    if array.dtype.kind in "OU":
        array = array.astype(object)
    return numpy_helper.from_array(array, name)


def _constant_array(node: onnx.NodeProto) -> np.ndarray:
    attribute = node.attribute[0]
    found = helper.get_attribute_value(attribute)
    if isinstance(found, onnx.TensorProto):
        return numpy_helper.to_array(found)
    return np.asarray(found, np.int64 if "int" in attribute.name else np.float32)


def _info(name: str, value: Value) -> onnx.ValueInfoProto:
    first = value.worlds[0]
    if not isinstance(first, list):
        kind = element_type(first.dtype)
        dims = [a if value.is_fixed else None for a in first.shape]
        return helper.make_tensor_value_info(name, kind, dims)
    item = next((item for world in value.worlds for item in world), np.zeros(0, np.float32))
    inner = helper.make_tensor_type_proto(element_type(item.dtype), None)
    return helper.make_value_info(name, helper.make_sequence_type_proto(inner))


def element_type(dtype: np.dtype[Any]) -> int:
    """The element type of ONNX for one of NumPy."""
    if dtype.kind in "OUS":
        return int(onnx.TensorProto.STRING)
    return int(helper.np_dtype_to_tensor_dtype(dtype))


def _free_names(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Names that nodes read from around them, bodies included."""
    free: set[str] = set()
    made: set[str] = set()
    for node in nodes:
        free |= {name for name in node.input if name and name not in made}
        for attribute in node.attribute:
            if attribute.HasField("g"):
                body = attribute.g
                own = {info.name for info in body.input} | {w.name for w in body.initializer}
                free |= _free_names(body.node) - own - made
                free |= {o.name for o in body.output} - _made(body.node) - own - made
        made |= set(node.output)
    return free


def _made(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    return {name for node in nodes for name in node.output}


def _check_contents(found: Any) -> None:
    """Refuses what would spoil everything behind it, and what is large."""
    for array in found if isinstance(found, list) else [found]:
        if not isinstance(array, np.ndarray):
            raise RefusedError("not a tensor")
        if array.size > MOST_ELEMENTS:
            raise RefusedError("large")
        if array.dtype.kind == "f":
            limit = 3e3 if array.dtype == np.float16 else 1e8
            if not (np.isfinite(array).all() and np.abs(array).max(initial=0) < limit):
                raise RefusedError("not finite")
