"""Files that are not valid models, each with what the refusal must name.

Every builder writes into a folder of its own and returns the file to pass to the command.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto, helper

from tests.helpers.text import model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Builder = Callable[[Path], Path]

GOOD = """
    g (float[2] x) => (float[2] y) <float[2] w> {
      [first] a = Relu (x)
      [second] y = Add (a, w)
    }
"""
HOSTILE: dict[str, tuple[Builder, str]] = {}


def good(path: Path) -> Path:
    """Writes a valid model."""
    path.write_bytes(model(GOOD).SerializeToString())
    return path


def _add(name: str, said: str, build: Builder) -> None:
    HOSTILE[name] = (build, said)


def _bytes(name: str, said: str, content: bytes) -> None:
    _add(name, said, lambda folder: _wrote(folder, content))


def _wrote(folder: Path, content: bytes) -> Path:
    (folder / "m.onnx").write_bytes(content)
    return folder / "m.onnx"


def _text(name: str, said: str, text: str) -> None:
    _bytes(name, said, model(text).SerializeToString())


def _changed(name: str, said: str, change: Callable[[Any], object], text: str = GOOD) -> None:
    proto = model(text)
    change(proto)
    _bytes(name, said, proto.SerializeToString())


# ---------------------------------------------------------------- not a model

VALID = model(GOOD).SerializeToString()
_bytes("empty file", "m.onnx", b"")
_bytes("text", "text", b"hello, world\n" * 50)
_bytes("noise", "m.onnx", bytes((i * 7919 >> 3) % 256 for i in range(4096)))
_bytes("zeros", "m.onnx", bytes(4096))
_bytes("picture", "PNG", b"\x89PNG\r\n\x1a\n" + bytes(99))
_bytes("pickle", "pickle", b"\x80\x04\x95" + bytes(50))
_bytes("truncated", "m.onnx", VALID[: len(VALID) * 2 // 3])
_bytes("truncated by one", "m.onnx", VALID[:-1])
_bytes("two models in one file", "two", VALID + VALID)
_bytes("only a header", "m.onnx", onnx.ModelProto(ir_version=8).SerializeToString())
_add("no such file", "no such file", lambda folder: folder / "none.onnx")
_add("a folder", "folder", lambda folder: _made(folder / "m.onnx", "mkdir"))
_add("a pipe", "m.onnx", lambda folder: _made(folder / "m.onnx", "fifo"))
_add("a device", "m.onnx", lambda folder: _linked(folder / "m.onnx", "/dev/zero"))
_add("a dangling link", "m.onnx", lambda folder: _linked(folder / "m.onnx", "nowhere"))
_add("a link to itself", "m.onnx", lambda folder: _linked(folder / "m.onnx", "m.onnx"))
_add("a name too long", "too long", lambda folder: folder / ("m" * 300 + ".onnx"))


def _made(path: Path, kind: str) -> Path:
    if kind == "mkdir":
        path.mkdir()
    else:
        os.mkfifo(path)
    return path


def _linked(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path


# ---------------------------------------------------------------- a broken graph

_bytes(
    "empty graph",
    "empty",
    helper.make_model(
        helper.make_graph([], "g", [], []),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    ).SerializeToString(),
)
_text(
    "cycle",
    "cycle",
    "g (float[2] x) => (float[2] y) { [one] a = Add (x, b) [two] b = Relu (a) y = Neg (b) }",
)
_text("a node that reads itself", "cycle", "g (float[2] x) => (float[2] y) { y = Add (x, y) }")
_text("dangling input", '"ghost"', "g (float[2] x) => (float[2] y) { y = Add (x, ghost) }")
_text("output that nobody makes", '"y"', "g (float[2] x) => (float[2] y) { z = Relu (x) }")
_text(
    "two makers of one value", '"y"', "g (float[2] x) => (float[2] y) { y = Relu (x) y = Neg (x) }"
)
_text("a node makes an input", '"x"', "g (float[2] x) => (float[2] x) { x = Relu (x) }")
_changed("two inputs of one name", '"x"', lambda m: m.graph.input.append(m.graph.input[0]))
_changed("two weights of one name", '"w"', lambda m: m.graph.initializer.append(m.graph.initializer[0]))  # fmt: skip
_changed("weight and node of one name", '"a"', lambda m: setattr(m.graph.initializer[0], "name", "a"))  # fmt: skip
_changed("unknown opset", "9999", lambda m: setattr(m.opset_import[0], "version", 9999))
_changed("opset 0", "opset", lambda m: setattr(m.opset_import[0], "version", 0))
_changed("no opset", "opset", lambda m: m.ClearField("opset_import"))
_changed("unknown file version", "IR", lambda m: setattr(m, "ir_version", 99))
_changed("no file version", "IR", lambda m: m.ClearField("ir_version"))
_changed("two opsets of one domain", "twice", lambda m: m.opset_import.add(domain="", version=13))
_changed("unknown operator", "Relo", lambda m: setattr(m.graph.node[0], "op_type", "Relo"))
_changed("unknown domain", '"own"', lambda m: setattr(m.graph.node[0], "domain", "own"))
_changed("unknown attribute", "speed", lambda m: m.graph.node[0].attribute.add(name="speed", i=3, type=2))  # fmt: skip
_changed("too many inputs", '"first"', lambda m: m.graph.node[0].input.append("x"))
_changed("too few inputs", '"second"', lambda m: m.graph.node[1].input.pop())
_bytes("a name that is not text", "UTF-8", VALID.replace(b"second", b"sec\xffnd"))
_text("types do not fit", '"second"', GOOD.replace("<float[2] w>", "<int64[2] w>"))
_text("shapes do not fit", "second", GOOD.replace("<float[2] w>", "<float[3] w>"))
_text(
    "a branch without outputs",
    "If",
    """g (bool c) => (float y) { [pick] y = If (c) <then_branch = t () => () { a = Constant <value_float = 1.0> () },
       else_branch = e () => (float b) { b = Constant <value_float = 2.0> () }> }""",
)
_text(
    "an enumeration with another word",
    "CIRCULAR",
    'g (float[1, 1, 4] x) => (float[1, 1, 4] y) { y = MaxPool <kernel_shape = [1], auto_pad = "CIRCULAR"> (x) }',
)


# ---------------------------------------------------------------- broken tensors


def _tensor(name: str, said: str, **fields: Any) -> None:
    def change(proto: onnx.ModelProto) -> None:
        tensor = proto.graph.initializer[0]
        for field, value in fields.items():
            tensor.ClearField(field)
            if isinstance(value, list):
                getattr(tensor, field).extend(value)
            else:
                setattr(tensor, field, value)

    _changed(name, said, change)


_tensor("weight too short", '"w"', raw_data=bytes(4))
_tensor("weight too long", '"w"', raw_data=bytes(12))
_tensor("weight without contents", '"w"', raw_data=b"")
_tensor("negative dimension", '"w"', dims=[-2])
_tensor("gigantic dimensions", '"w"', dims=[2**62, 2**62])
_tensor("unknown element type", '"w"', data_type=77)
_tensor("no element type", '"w"', data_type=0)


# ---------------------------------------------------------------- weights in other files


def _external(
    name: str, said: str, location: str, prepare: Callable[[Path], object] = lambda folder: None, **more: object
) -> None:  # fmt: skip
    def build(folder: Path) -> Path:
        inside = folder / "inside"
        inside.mkdir()
        (folder / "secret").write_bytes(b"SECRET!!")
        prepare(inside)
        proto = model(GOOD)
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location.format(folder=folder), **more}.items():
            tensor.external_data.add(key=key, value=str(value))
        return _wrote(inside, proto.SerializeToString())

    _add(name, said, build)


_external("data that is not there", "w.data", "w.data")
_external("data above the folder", "secret", "../secret")
_external("data above by a detour", "secret", "a/../../secret")
_external("data by absolute path", "absolute", "{folder}/secret")
_external("data over a link", "w.data", "w.data", lambda f: (f / "w.data").symlink_to("../secret"))
_external("data in a linked folder", "sub", "sub/secret", lambda f: (f / "sub").symlink_to(".."))
_external("data by hard link", "w.data", "w.data", lambda f: os.link(f.parent / "secret", f / "w.data"))  # fmt: skip
_external("data in a pipe", "w.data", "w.data", lambda f: os.mkfifo(f / "w.data"))
_external("data in a folder", "w.data", "w.data", lambda f: (f / "w.data").mkdir())
_external("data on a device", "w.data", "w.data", lambda f: (f / "w.data").symlink_to("/dev/zero"))
_external("data in memory", "memory", "*/_ORT_MEM_ADDR_/*", offset=4096, length=8)
_external("data by address", "passwd", "file:///etc/passwd")
_external("data truncated", '"w"', "w.data", lambda f: (f / "w.data").write_bytes(bytes(7)))
_external("data length too short", '"w"', "w.data", lambda f: (f / "w.data").write_bytes(bytes(99)), length=4)  # fmt: skip
_external("data length of zero", '"w"', "w.data", lambda f: (f / "w.data").write_bytes(bytes(99)), length=0)  # fmt: skip
_external("data length wild", '"w"', "w.data", lambda f: (f / "w.data").write_bytes(bytes(99)), length=2**62)  # fmt: skip
_external("data offset wild", '"w"', "w.data", lambda f: (f / "w.data").write_bytes(bytes(99)), offset=2**63)  # fmt: skip
_external("data offset negative", '"w"', "w.data", lambda f: (f / "w.data").write_bytes(bytes(99)), offset=-8)  # fmt: skip
_external("data offset is a word", '"w"', "w.data", lambda f: (f / "w.data").write_bytes(bytes(99)), offset="many")  # fmt: skip


# ---------------------------------------------------------------- what would hang or kill native code


def _functions(count: int, calls: int) -> bytes:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    functions = []
    for index in range(count):
        inner = f"f{index + 1}"
        last = index == count - 1
        nodes = [
            helper.make_node("Relu" if last else inner, [f"v{i}"], [f"v{i + 1}"], domain="" if last else "f")
            for i in range(calls)
        ]  # fmt: skip
        functions.append(
            helper.make_function("f", f"f{index}", ["v0"], [f"v{calls}"], nodes, imports)
        )
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph([helper.make_node("f0", ["x"], ["y"], domain="f")], "g", [x], [y])
    made = helper.make_model(graph, functions=functions, opset_imports=imports, ir_version=8)
    data: bytes = made.SerializeToString()
    return data


def nested_ifs(depth: int) -> bytes:
    """A model with bodies inside each other, put together by hand: protobuf writes no more than about thirty."""
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    value = helper.make_tensor("t", TensorProto.FLOAT, [], [1.0])
    leaf = helper.make_graph(
        [helper.make_node("Constant", [], ["y"], value=value)], "b", [], [out]
    ).SerializeToString()
    node = helper.make_node("If", ["c"], ["y"]).SerializeToString()
    then, other = (
        onnx.AttributeProto(name=name, type=onnx.AttributeProto.GRAPH).SerializeToString()
        for name in ("then_branch", "else_branch")
    )
    rest = onnx.GraphProto(name="b", output=[out]).SerializeToString()
    body = leaf
    for _ in range(depth):
        branches = _field(5, then + _field(6, body)) + _field(5, other + _field(6, leaf))
        body = _field(1, node + branches) + rest
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    body += onnx.GraphProto(input=[condition]).SerializeToString()
    head = onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 17)])
    return bytes(head.SerializeToString()) + _field(7, body)


def _field(number: int, content: bytes) -> bytes:
    """One length-delimited field of a protobuf message."""
    return _number(number << 3 | 2) + _number(len(content)) + content


def _number(value: int) -> bytes:
    head = b""
    while value > 127:
        head += bytes([value & 127 | 128])
        value >>= 7
    return head + bytes([value])


_bytes("thirty functions that call the next twice", "--max-", _functions(31, 2))
_bytes("three thousand functions in a chain", "--max-", _functions(3000, 1))
_text(
    "a function that calls itself",
    '"again"',
    """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    g (float[2] x) => (float[2] y) { y = f.again (x) }
    <domain: "f", opset_import: ["" : 17, "f" : 1]>
    again (a) => (b) { b = f.again (a) }""",
)
_bytes("bodies inside bodies", "m.onnx", nested_ifs(60))
_changed("a rank of two hundred", "--max-rank", lambda m: m.graph.input[0].type.tensor_type.shape.dim.extend([onnx.TensorShapeProto.Dimension(dim_value=1)] * 200))  # fmt: skip


# ---------------------------------------------------------------- names that attack the terminal


def _named(name: str, ghost: str) -> None:
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.node[0].name = ghost
        proto.graph.node[0].input[0] = ghost

    _changed(name, "reads", change)


_named("a name with line breaks", "a\nerror: all is well\n\rb")
_named("a name with escapes", "\x1b[2J\x1b]0;owned\x07")
_named("a name of ten kilobytes", "n" * 10_000)
_named("a name with formats", "%s%n{0}{x!r}")
_named("a name that turns the text", "\u202etxt.exe\u2066")
