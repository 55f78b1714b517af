"""Does the time of `onnxcomp optimize` grow with the graph, and no faster?

    python benchmarks/bench_scaling.py [--kinds NAME...] [--sizes N...] [--tools NAME...]

Generated graphs of several kinds and sizes, optimized by every tool as a whole process. A tool that
took longer than `--timeout` at one size is not asked about larger ones. `per_1000` is seconds per
1,000 nodes of the input, `cpu_per_1000` the same in processor time of all processes, and `growth` the
exponent by which that time grows from the size before: 1 is linear, 2 quadratic; the time that a tool
takes for the smallest graph of all is taken off first, so that starting up does not hide the growth.
"""

import argparse
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _common import (
    RESULTS,
    Row,
    count_nodes,
    onnxcomp_command,
    parser,
    run_child,
    say,
    write_results,
)
from _peers import OPTIMIZERS, installed, optimizer_command
from onnx import (
    FunctionProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

COLUMNS = [
    "kind",
    "nodes",
    "tool",
    "left",
    "seconds",
    "per_1000",
    "cpu_per_1000",
    "growth",
    "anonymous_mb",
    "note",
]
SIZES = (1000, 5000, 20000, 50000)
OPSET = 17
WIDTH = 8
OURS = "onnxcomp"


class Builder:
    """Nodes and weights of a graph in the making."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.tensors: dict[str, TensorProto] = {}
        self.random = np.random.default_rng(0)

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        out = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=out, **attributes))
        return out

    def weight(self, *shape: int) -> str:
        values = self.random.standard_normal(shape).astype(np.float32) / WIDTH**0.5
        return self.constant(values)

    def constant(self, values: object) -> str:
        name = f"w{len(self.tensors)}"
        self.tensors[name] = numpy_helper.from_array(np.asarray(values), name)
        return name

    def model(self, out: str, functions: list[FunctionProto] | None = None) -> ModelProto:
        self.nodes.append(helper.make_node("Identity", [out], ["y"], name="last"))
        shape: list[str | int] = ["n", WIDTH]
        graph = helper.make_graph(
            self.nodes,
            "generated",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            list(self.tensors.values()),
        )
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("f", 1)]
        return helper.make_model(
            graph,
            opset_imports=imports[: 2 if functions else 1],
            ir_version=8,
            functions=functions or [],
        )


def chain(count: int) -> ModelProto:
    """One after another: products, sums, activations, and an Identity now and then."""
    made, last = Builder(), "x"
    weights = [made.weight(WIDTH, WIDTH) for _ in range(20)]
    while len(made.nodes) < count:
        last = made.node("MatMul", last, weights[len(made.nodes) % 20])
        last = made.node("Tanh", made.node("Identity", last))
    return made.model(last)


def residual(count: int) -> ModelProto:
    """Each block adds to what came in."""
    made, last = Builder(), "x"
    while len(made.nodes) < count:
        inner = made.node("MatMul", last, made.weight(WIDTH, WIDTH))
        inner = made.node("Tanh", made.node("Add", inner, made.weight(WIDTH)))
        last = made.node("Add", last, inner)
    return made.model(last)


def wide(count: int) -> ModelProto:
    """Branches from one input, gathered again: two hubs with thousands of neighbours."""
    made = Builder()
    ends = []
    while len(made.nodes) < count - 2:
        ends.append(made.node("Tanh", made.node("Mul", "x", made.weight(WIDTH))))
    return made.model(made.node("Sum", *ends))


def constants(count: int) -> ModelProto:
    """Sums of constants that fold, added to the input one by one."""
    made, last = Builder(), "x"
    while len(made.nodes) < count:
        ends = [
            made.node(
                "Constant",
                value=numpy_helper.from_array(np.asarray(len(made.nodes) + i, np.float32)),
            )
            for i in range(2)
        ]
        folded = made.node("Mul", made.node("Add", *ends), ends[0])
        last = made.node("Tanh", made.node("Add", last, folded))
    return made.model(last)


def transformer(count: int) -> ModelProto:
    """Blocks as exporters write them: shapes computed at run time, norms in single operators."""
    made = Builder()
    last = made.node("Unsqueeze", "x", made.constant(np.array([0], np.int64)))
    while len(made.nodes) < count:
        last = _attention(made, last)
    return made.model(made.node("Squeeze", last, made.constant(np.array([0], np.int64))))


def _attention(made: Builder, source: str) -> str:
    normal = _norm(made, source)
    heads = []
    for _ in range(3):
        part = made.node(
            "Add", made.node("MatMul", normal, made.weight(WIDTH, WIDTH)), made.weight(WIDTH)
        )
        heads.append(made.node("Transpose", _split(made, part), perm=[0, 2, 1, 3]))
    scores = made.node("MatMul", heads[0], made.node("Transpose", heads[1], perm=[0, 1, 3, 2]))
    scores = made.node("Softmax", made.node("Div", scores, made.constant(np.float32(2))), axis=-1)
    mixed = made.node("Transpose", made.node("MatMul", scores, heads[2]), perm=[0, 2, 1, 3])
    batch, length = (_dimension(made, mixed, axis) for axis in (0, 1))
    joined = made.node(
        "Reshape", mixed, made.node("Concat", batch, length, _one(made, WIDTH), axis=0)
    )
    return made.node("Add", source, joined)


def _norm(made: Builder, source: str) -> str:
    mean = made.node("ReduceMean", source, axes=[-1])
    centred = made.node("Sub", source, mean)
    square = made.node("Pow", centred, made.constant(np.float32(2)))
    spread = made.node(
        "Add", made.node("ReduceMean", square, axes=[-1]), made.constant(np.float32(1e-5))
    )
    normal = made.node("Div", centred, made.node("Sqrt", spread))
    return made.node("Add", made.node("Mul", normal, made.weight(WIDTH)), made.weight(WIDTH))


def _split(made: Builder, source: str) -> str:
    batch, length = (_dimension(made, source, axis) for axis in (0, 1))
    return made.node(
        "Reshape",
        source,
        made.node("Concat", batch, length, _one(made, 2), _one(made, WIDTH // 2), axis=0),
    )


def _dimension(made: Builder, source: str, axis: int) -> str:
    size = made.node("Gather", made.node("Shape", source), made.constant(np.int64(axis)), axis=0)
    return made.node("Unsqueeze", size, made.constant(np.array([0], np.int64)))


def _one(made: Builder, size: int) -> str:
    return made.node("Constant", value=numpy_helper.from_array(np.array([size], np.int64)))


def branches(count: int) -> ModelProto:
    """If in If in If, and a Loop at the bottom; then the next of these."""
    made, last = Builder(), "x"
    condition = made.node(
        "Greater", made.node("ReduceMax", "x", keepdims=0), made.constant(np.float32(0))
    )
    made.tensors["two"] = numpy_helper.from_array(np.asarray(2, np.int64), "two")
    total = len(made.nodes)
    while total < count:
        node = _nest(f"n{len(made.nodes)}", last, condition, depth=6)
        node.output[0] = last = f"b{len(made.nodes)}"
        made.nodes.append(node)
        total += 34
    return made.model(last)


def _nest(name: str, source: str, condition: str, depth: int) -> NodeProto:
    if depth == 0:
        return _loop(name, source, condition)
    inner = _nest(f"{name}i", f"{name}t1", condition, depth - 1)
    inner.output[0] = f"{name}t2"
    then = [
        helper.make_node("Tanh", [source], [f"{name}t0"]),
        helper.make_node("Identity", [f"{name}t0"], [f"{name}t1"]),
        inner,
    ]
    other = [
        helper.make_node("Abs", [source], [f"{name}e0"]),
        helper.make_node("Neg", [f"{name}e0"], [f"{name}e1"]),
    ]
    return helper.make_node(
        "If",
        [condition],
        [f"{name}o"],
        then_branch=helper.make_graph(then, "t", [], [_value(f"{name}t2")]),
        else_branch=helper.make_graph(other, "e", [], [_value(f"{name}e1")]),
    )


def _loop(name: str, source: str, condition: str) -> NodeProto:
    body = helper.make_graph(
        [
            helper.make_node("Identity", [f"{name}c"], [f"{name}k"]),
            helper.make_node("Tanh", [f"{name}s"], [f"{name}r"]),
        ],
        "l",
        [
            helper.make_tensor_value_info(f"{name}i", TensorProto.INT64, []),
            helper.make_tensor_value_info(f"{name}c", TensorProto.BOOL, []),
            _value(f"{name}s"),
        ],
        [helper.make_tensor_value_info(f"{name}k", TensorProto.BOOL, []), _value(f"{name}r")],
    )
    return helper.make_node("Loop", ["two", condition, source], [f"{name}o"], body=body)


def _value(name: str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH])


def functions(count: int) -> ModelProto:
    """A function for every hundred nodes, each called from two places."""
    made, last, defined = Builder(), "x", []
    for index in range(max(1, count // 100)):
        nodes = [
            helper.make_node(("Tanh", "Identity", "Abs", "Neg")[i % 4], [f"a{i}"], [f"a{i + 1}"])
            for i in range(98)
        ]
        defined.append(
            helper.make_function(
                "f", f"f{index}", ["a0"], ["a98"], nodes, [helper.make_opsetid("", OPSET)]
            )
        )
        for _ in range(2):
            last = made.node(f"f{index}", last, domain="f")
    return made.model(last, defined)


KINDS: dict[str, Callable[[int], ModelProto]] = {
    made.__name__: made
    for made in (chain, residual, wide, constants, transformer, branches, functions)
}


def main() -> None:
    options = parser(__doc__ or "", models=False)
    options.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    options.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    options.add_argument(
        "--tools", nargs="+", default=[OURS, *OPTIMIZERS], choices=[OURS, *OPTIMIZERS]
    )
    options.add_argument("--rounds", type=int, default=1, help="the shortest run counts")
    options.add_argument("--timeout", type=float, default=120)
    chosen = options.parse_args()
    there = {OURS, *installed(chosen.peer_python)}
    tools = [tool for tool in chosen.tools if tool in there]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        for kind in chosen.kinds:
            for row in _measure(kind, tools, chosen, Path(temporary)):
                rows.append(row)
                say("  ".join(f"{name}={row.get(name)}" for name in COLUMNS))
            write_results(chosen.output or RESULTS / "scaling.json", "Large graphs", rows, COLUMNS)


def _measure(
    kind: str, tools: list[str], chosen: argparse.Namespace, folder: Path
) -> Iterator[Row]:
    gone: set[str] = set()
    before: dict[str, Row] = {}
    first: dict[str, float] = {}
    for size in sorted({100, *chosen.sizes}):
        model, out = folder / "model.onnx", folder / "out.onnx"
        model.write_bytes(KINDS[kind](size).SerializeToString())
        nodes = count_nodes(model)
        for tool in tools:
            if tool in gone:
                continue
            row = _run(tool, model, out, chosen)
            row |= {"kind": kind, "nodes": nodes}
            if row["note"]:
                gone.add(tool)
            elif size == 100:
                first[tool] = row["cpu"]
                continue
            else:
                row["cpu_per_1000"] = row["cpu"] / nodes * 1000
                row["per_1000"] = row["seconds"] / nodes * 1000
                if tool in before:
                    row["growth"] = _growth(before[tool], row, first[tool])
                before[tool] = row
            yield row


def _run(tool: str, model: Path, out: Path, chosen: argparse.Namespace) -> Row:
    command = (
        onnxcomp_command(chosen.python, "optimize", model, "-o", out)
        if tool == OURS
        else optimizer_command(chosen.peer_python, tool, model, out)
    )
    runs = []
    for _ in range(chosen.rounds):
        out.unlink(missing_ok=True)
        runs.append(run_child(command, timeout=chosen.timeout, watch=0.05))
        if runs[-1].returncode:
            break
    best = min(runs, key=lambda run: run.cpu_seconds)
    failed = runs[-1].returncode != 0 or not out.exists()
    return {
        "tool": tool,
        "seconds": min(run.seconds for run in runs),
        "cpu": best.cpu_seconds,
        "anonymous_mb": best.peak_anonymous / 1e6,
        "left": None if failed else count_nodes(out),
        "note": (runs[-1].reason or "wrote nothing") if failed else "",
    }


def _growth(before: Row, now: Row, start: float) -> float | None:
    smaller, larger = before["cpu"] - start, now["cpu"] - start
    if min(smaller, larger) < 0.05:
        return None
    return math.log(larger / smaller) / math.log(now["nodes"] / before["nodes"])


if __name__ == "__main__":
    main()
