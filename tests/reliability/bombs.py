"""Small valid models that ask for much: memory, time, or a processor fault when something is folded."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.helpers.text import model

BOMBS: dict[str, onnx.ModelProto] = {}
BIG = 2**31


def _bomb(name: str, text: str) -> None:
    BOMBS[name] = model(text)


def _sized(name: str, node: str, constants: str) -> None:
    """One node makes something huge of small constants; only its first element is used."""
    _bomb(
        name,
        f"""
        g (float[1] x) => (float[1] y)
        <int64[1] zero = {{0}}, float[1] one = {{1.0}}, {constants}> {{
          {node}
          flat = Reshape (huge, all)
          head = Gather (flat, zero)
          y = Add (x, head)
        }}
        """.replace("<int64[1] zero", "<int64[1] all = {-1}, int64[1] zero"),
    )


_sized("ConstantOfShape", "huge = ConstantOfShape (s)", f"int64[2] s = {{{BIG}, 16}}")
_sized("Expand", "huge = Expand (one, s)", f"int64[2] s = {{{BIG}, 16}}")
_sized("Tile", "huge = Tile (one, s)", f"int64[1] s = {{{16 * BIG}}}")
_sized(
    "Range",
    "r = Range (start, end, step) huge = Cast <to = 1> (r)",
    f"int64 start = {{0}}, int64 end = {{{16 * BIG}}}, int64 step = {{1}}",
)
_sized("Pad", "huge = Pad (one, s)", f"int64[2] s = {{{8 * BIG}, {8 * BIG}}}")
_sized(
    "Resize",
    "m = Reshape (one, shape) huge = Resize (m, , , s)",
    "int64[4] shape = {1, 1, 1, 1}, int64[4] s = {1, 1, 100000, 100000}",
)
_sized(
    "OneHot",
    "huge = OneHot (i, depth, values)",
    f"int64[4] i = {{0, 1, 2, 3}}, int64 depth = {{{4 * BIG}}}, float[2] values = {{0.0, 1.0}}",
)
_sized(
    "outer product",
    "a = ConstantOfShape (s) b = ConstantOfShape (t) huge = Mul (a, b)",
    "int64[2] s = {1, 1000000}, int64[2] t = {1000000, 1}",
)
_sized(
    "Einsum",
    'a = ConstantOfShape (s) huge = Einsum <equation = "i,j,k->ijk"> (a, a, a)',
    "int64[1] s = {10000}",
)
_sized(
    "Trilu and EyeLike",
    "z = ConstantOfShape (s) huge = EyeLike (z)",
    "int64[2] s = {1000000, 1000000}",
)
_sized(
    "Concat that doubles",
    "c0 = Concat <axis = 0> (one, one) "
    + " ".join(f"c{i + 1} = Concat <axis = 0> (c{i}, c{i})" for i in range(40))
    + " huge = Identity (c40)",
    "int64[1] unused = {0}",
)
_sized(
    "matrix products",
    "c0 = ConstantOfShape (s) "
    + " ".join(f"c{i + 1} = MatMul (c{i}, c{i})" for i in range(64))
    + " huge = Identity (c64)",
    "int64[2] s = {2000, 2000}",
)


def _many(name: str, count: int) -> None:
    """Each node makes what one may make; together they are too much."""
    made = [f"h{i} = Expand (c{i}, s)" for i in range(count)]
    constants = ", ".join(f"float[1] c{i} = {{{i}.0}}" for i in range(count))
    total = [f"t{i + 1} = Add (t{i}, h{i})" for i in range(count)]
    _bomb(
        name,
        f"g (float[1] x) => (float[16000] y) <int64[1] s = {{16000}}, {constants}> "
        f"{{ t0 = Expand (x, s) {' '.join(made)} {' '.join(total)} y = Identity (t{count}) }}",
    )


_many("many of the allowed size", 200)


def _integers(name: str, operator: str, dtype: str, first: int, second: int) -> None:
    _bomb(
        name,
        f"g ({dtype}[1] x) => ({dtype}[1] y) <{dtype}[1] a = {{{first}}}, {dtype}[1] b = {{{second}}}> "
        f"{{ c = {operator} (a, b) y = Add (x, c) }}",
    )


for _dtype, _bits in (("int64", 64), ("int32", 32)):
    _integers(f"{_dtype} smallest by -1", "Div", _dtype, -(2 ** (_bits - 1)), -1)
    _integers(f"{_dtype} smallest modulo -1", "Mod", _dtype, -(2 ** (_bits - 1)), -1)
    _integers(f"{_dtype} by zero", "Div", _dtype, 5, 0)
    _integers(f"{_dtype} modulo zero", "Mod", _dtype, 5, 0)


def _computed_divisor() -> onnx.ModelProto:
    """The divisor becomes -1 only when something else was folded."""
    return model(
        f"""
        g (int64[1] x) => (int64[1] y)
        <int64[1] a = {{{-(2**63)}}}, int64[2] s = {{7, 8}}, int64[1] at = {{0}}> {{
          shape = Shape (s)
          three = Neg (shape)
          one = Gather (three, at)
          two = Neg (shape)
          less = Sub (one, two)
          minus = Sub (less, one_weight)
          c = Div (a, minus)
          y = Add (x, c)
        }}
    """.replace("int64[1] at", "int64[1] one_weight = {1}, int64[1] at")
    )


BOMBS["a divisor that is computed"] = _computed_divisor()


def _chain(count: int) -> onnx.ModelProto:
    """Very many nodes one after the other: nothing may recurse, nothing may be quadratic."""
    nodes = [helper.make_node("Neg", [f"v{i}"], [f"v{i + 1}"]) for i in range(count)]
    return _plain(nodes, "v0", f"v{count}")


def _fan_out(count: int) -> onnx.ModelProto:
    """One value that very many nodes read."""
    nodes = [helper.make_node("Neg", ["x"], [f"v{i}"]) for i in range(count)]
    nodes.append(helper.make_node("Sum", [f"v{i}" for i in range(count)], ["y"]))
    return _plain(nodes, "x", "y")


def _plain(nodes: list[onnx.NodeProto], source: str, result: str) -> onnx.ModelProto:
    x = helper.make_tensor_value_info(source, TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info(result, TensorProto.FLOAT, [2])
    return helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


BOMBS["a chain of twenty thousand"] = _chain(20_000)
BOMBS["a fan-out of five thousand"] = _fan_out(5_000)


def _sparse() -> onnx.ModelProto:
    """A sparse tensor of one value that is huge when it is made dense."""
    made = _plain([helper.make_node("Gather", ["s", "x"], ["y"])], "x", "y")
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    sparse = made.graph.sparse_initializer.add(dims=[2**40])
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "s"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64), "s_at"))
    return made


BOMBS["a sparse weight"] = _sparse()
