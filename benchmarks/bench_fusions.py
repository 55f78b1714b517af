"""Is one operator as fast as the formula that it replaces? Pattern against operator, paired.

    python benchmarks/bench_fusions.py [--only WORD] [--rounds N]

Each case is a formula as exporters write it and the operator that stands for it, on a few shapes, one
thread, onnxruntime with all its own rewrites. Time is that of the processor: other work on the
machine disturbs it least. `applied` says whether the passes of this repository
build the operator for the CPU; `runtime` is what onnxruntime itself makes of the formula. A formula
whose operator is slower (ratio above 1) stays as it is; so does one that differs for some numbers.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import onnx
from _common import (
    RESULTS,
    Feeds,
    Row,
    open_session,
    parser,
    ratio,
    say,
    write_results,
)

COLUMNS = ["formula", "operator", "applied", "shape", "ratio", "spread", "microseconds", "runtime"]
NUMBERS = {
    "zero": 0,
    "one": 1,
    "two": 2,
    "three": 3,
    "six": 6,
    "half": 0.5,
    "tenth": 0.1,
    "fifth": 0.2,
    "root": 1.4142135,
    "cube": 3,
    "curve": 0.044715,
    "slope": 0.7978846,
    "eps": 1e-5,
    "selu": 1.050701,
    "quarter": 0.25,
}
ROW = ((1, 16, 384), (1, 64, 56, 56))
LAST = ((1, 16, 384), (12, 128, 128))
TEXT = ((1, 16, 384), (8, 128, 768))
IMAGE = ((1, 64, 56, 56), (4, 32, 16, 16))


@dataclass(frozen=True)
class Case:
    """A formula, the operator, and on what they are compared; C is the last dimension, B the second."""

    name: str
    formula: str
    operator: str
    shapes: tuple[tuple[int, ...], ...]
    opset: int = 20
    applied: bool = True
    weights: str = ""


MEAN = "m = ReduceMean (x, last) d = Sub (x, m) {square} v = ReduceMean (p, last) a = Add (v, eps) r = Sqrt (a)"
POW, MUL = MEAN.format(square="p = Pow (d, two)"), MEAN.format(square="p = Mul (d, d)")
AFFINE = "float[C] w, float[C] b"
TANH = "q = Mul (x, x) k = Mul (x, q) s = Mul (curve, k) t = Add (x, s) u = Mul (t, slope) e = Tanh (u) g = Add (one, e) m = Mul (x, g) y = Mul (m, half)"
SHIFT = "m = ReduceMax (x, last) d = Sub (x, m) e = Exp (d) s = ReduceSum (e, last)"
HEADS = "q = MatMul (x, wq) k = MatMul (x, wk) v = MatMul (x, wv)"
SPLIT = (
    "qr = Reshape (q, sp) kr = Reshape (k, sp) vr = Reshape (v, sp) qt = Transpose <perm = [0, 2, 1, 3]> (qr) "
    "kt = Transpose <perm = [0, 2, 3, 1]> (kr) vt = Transpose <perm = [0, 2, 1, 3]> (vr) s = MatMul (qt, kt) "
    "t = Mul (s, quarter) p = Softmax (t) o = MatMul (p, vt) ot = Transpose <perm = [0, 2, 1, 3]> (o) y = Reshape (ot, mg)"
)
PROJECT = "float[C, C] wq, float[C, C] wk, float[C, C] wv, int64[4] sp = {0, 0, -1, 32}, int64[3] mg = {0, 0, C}"
NORM = "LayerNormalization <epsilon = 0.00001> (x, w, b)"

CASES = [
    Case("1 / (1 + exp(-x))", "n = Neg (x) e = Exp (n) a = Add (e, one) y = Div (one, a)", "y = Sigmoid (x)", ROW),
    Case("x / (1 + |x|)", "a = Abs (x) b = Add (a, one) y = Div (x, b)", "y = Softsign (x)", ROW),
    Case("max(x, 0.1 x)", "m = Mul (x, tenth) y = Max (x, m)", "y = LeakyRelu <alpha = 0.1> (x)", ROW),
    Case("where(x > 0, x, 0.1 x)", "c = Greater (x, zero) m = Mul (x, tenth) y = Where (c, x, m)", "y = LeakyRelu <alpha = 0.1> (x)", ROW),
    Case("relu(x) - 0.1 relu(-x)", "p = Relu (x) n = Neg (x) q = Relu (n) r = Mul (q, tenth) y = Sub (p, r)", "y = LeakyRelu <alpha = 0.1> (x)", ROW),
    Case("PRelu, one slope", "y = PRelu (x, tenth)", "y = LeakyRelu <alpha = 0.1> (x)", ROW),
    Case("relu(x) - w relu(-x)", "p = Relu (x) n = Neg (x) q = Relu (n) r = Mul (q, w) y = Sub (p, r)", "y = PRelu (x, w)", ROW, applied=False, weights="float[C] w"),
    Case("where(x > 1, x, 0)", "c = Greater (x, one) y = Where (c, x, zero)", "y = ThresholdedRelu <alpha = 1.0> (x)", ROW),
    Case("max(x, 0)", "y = Max (x, zero)", "y = Relu (x)", ROW),
    Case("min(max(x, 0), 6)", "a = Max (x, zero) y = Min (a, six)", "y = Clip (x, zero, six)", ROW),
    Case("clip(x + 3, 0, 6) / 6", "a = Add (x, three) c = Clip (a, zero, six) y = Div (c, six)", "y = HardSigmoid <alpha = 0.16666667> (x)", ROW),
    Case("clip(0.2 x + 0.5, 0, 1)", "m = Mul (x, fifth) a = Add (m, half) y = Clip (a, zero, one)", "y = HardSigmoid <alpha = 0.2> (x)", ROW),
    Case("x clip(x + 3, 0, 6) / 6", "a = Add (x, three) c = Clip (a, zero, six) m = Mul (x, c) y = Div (m, six)", "y = HardSwish (x)", ROW),
    Case("x HardSigmoid(x)", "a = HardSigmoid <alpha = 0.16666667> (x) y = Mul (x, a)", "y = HardSwish (x)", ROW),
    Case("x tanh(softplus(x))", "s = Softplus (x) t = Tanh (s) y = Mul (x, t)", "y = Mish (x)", ROW),
    Case("1.05 Elu", "e = Elu <alpha = 1.6732632> (x) y = Mul (e, selu)", "y = Selu (x)", ROW),
    Case("log(1 + exp(x))", "e = Exp (x) a = Add (e, one) y = Log (a)", "y = Softplus (x)", ROW, applied=False),
    Case("where(x > 0, x, exp(x) - 1)", "c = Greater (x, zero) e = Exp (x) m = Sub (e, one) y = Where (c, x, m)", "y = Elu (x)", ROW, applied=False),
    Case("celu", "p = Relu (x) d = Div (x, two) e = Exp (d) m = Sub (e, one) a = Mul (m, two) n = Min (a, zero) y = Add (p, n)", "y = Celu <alpha = 2.0> (x)", ROW, applied=False),
    Case("x sigmoid(x)", "s = Sigmoid (x) y = Mul (x, s)", "y = Swish (x)", ROW, opset=24, applied=False),
    Case("gelu with erf", "d = Div (x, root) e = Erf (d) g = Add (e, one) m = Mul (x, g) y = Mul (m, half)", "y = Gelu (x)", TEXT),
    Case("gelu with tanh", TANH, 'y = Gelu <approximate = "tanh"> (x)', TEXT),
    Case("gelu with tanh, before opset 20", TANH, "q = Mul (x, x) k = Mul (q, curve) s = Add (k, slope) t = Mul (x, s) g = Sigmoid (t) y = Mul (x, g)", TEXT, opset=17),
    Case("softmax", f"{SHIFT} y = Div (e, s)", "y = Softmax (x)", LAST),
    Case("softmax, axis 1", f"{SHIFT} y = Div (e, s)".replace("last", "axis"), "y = Softmax <axis = 1> (x)", IMAGE, applied=False, weights="int64[1] axis = {1}"),
    Case("exp / sum(exp)", "e = Exp (x) s = ReduceSum (e, last) y = Div (e, s)", "y = Softmax (x)", LAST, applied=False),
    Case("log(softmax)", "s = Softmax (x) y = Log (s)", "y = LogSoftmax (x)", LAST, applied=False),
    Case("d - log(sum(exp(d)))", f"{SHIFT} l = Log (s) y = Sub (d, l)", "y = LogSoftmax (x)", LAST),
    Case("log(sum(exp))", "e = Exp (x) s = ReduceSum (e, last) y = Log (s)", "y = ReduceLogSumExp (x, last)", LAST, applied=False),
    Case("sqrt(sum(x x))", "q = Mul (x, x) s = ReduceSum (q, last) y = Sqrt (s)", "y = ReduceL2 (x, last)", LAST, applied=False),
    Case("sum(x x)", "q = Mul (x, x) y = ReduceSum (q, last)", "y = ReduceSumSquare (x, last)", LAST, applied=False),
    Case("sum(|x|)", "q = Abs (x) y = ReduceSum (q, last)", "y = ReduceL1 (x, last)", LAST, applied=False),
    Case("x / l2(x)", "l = ReduceL2 (x, last) y = Div (x, l)", "y = LpNormalization <axis = -1, p = 2> (x)", LAST, applied=False),
    Case("layer normalization, Pow", f"{POW} q = Div (d, r) k = Mul (q, w) y = Add (k, b)", f"y = {NORM}", TEXT, weights=AFFINE),
    Case("layer normalization, Mul", f"{MUL} q = Div (d, r) k = Mul (q, w) y = Add (k, b)", f"y = {NORM}", TEXT, weights=AFFINE),
    Case("layer normalization, Reciprocal", f"{MUL} i = Reciprocal (r) q = Mul (d, i) k = Mul (q, w) y = Add (k, b)", f"y = {NORM}", TEXT, weights=AFFINE),
    Case("layer normalization, no scale", f"{MUL} y = Div (d, r)", "y = LayerNormalization <epsilon = 0.00001> (x, w)", TEXT, weights=AFFINE),
    Case("layer normalization, then Add", "z = LayerNormalization (x, w) y = Add (z, b)", "y = LayerNormalization (x, w, b)", TEXT, weights=AFFINE),
    Case("layer normalization, Mul, before opset 17", f"{MUL} q = Div (d, r) k = Mul (q, w) y = Add (k, b)".replace(" (x, last)", " <axes = [-1]> (x)").replace(" (p, last)", " <axes = [-1]> (p)"), f"{POW} q = Div (d, r) k = Mul (q, w) y = Add (k, b)".replace(" (x, last)", " <axes = [-1]> (x)").replace(" (p, last)", " <axes = [-1]> (p)"), TEXT, opset=13, weights=AFFINE),
    Case("root mean square, Pow", "p = Pow (x, two) v = ReduceMean (p, last) a = Add (v, eps) r = Sqrt (a) q = Div (x, r) y = Mul (q, w)", "y = RMSNormalization <epsilon = 0.00001, axis = -1> (x, w)", TEXT, opset=23, weights=AFFINE),
    Case("root mean square, Reciprocal", "p = Mul (x, x) v = ReduceMean (p, last) a = Add (v, eps) r = Sqrt (a) i = Reciprocal (r) q = Mul (x, i) y = Mul (q, w)", "y = RMSNormalization <epsilon = 0.00001, axis = -1> (x, w)", TEXT, opset=23, weights=AFFINE),
    Case("instance normalization", MUL.replace("last", "sp") + " q = Div (d, r) k = Mul (q, wc) y = Add (k, bc)", "y = InstanceNormalization <epsilon = 0.00001> (x, w, b)", IMAGE, weights="float[B] w, float[B] b, float[B, 1, 1] wc, float[B, 1, 1] bc, int64[2] sp = {2, 3}"),
    Case("group normalization", "r = Reshape (x, gr) i = InstanceNormalization <epsilon = 0.00001> (r, ones, zeros) s = Shape (x) q = Reshape (i, s) k = Mul (q, wc) y = Add (k, bc)", "y = GroupNormalization <epsilon = 0.00001, num_groups = 8> (x, w, b)", IMAGE, opset=21, applied=False, weights="float[8] ones = {1, 1, 1, 1, 1, 1, 1, 1}, float[8] zeros = {0, 0, 0, 0, 0, 0, 0, 0}, float[B] w, float[B] b, float[B, 1, 1] wc, float[B, 1, 1] bc, int64[3] gr = {0, 8, -1}"),
    Case("pixel shuffle", "a = Reshape (x, s1) t = Transpose <perm = [0, 1, 4, 2, 5, 3]> (a) y = Reshape (t, s2)", 'y = DepthToSpace <blocksize = 2, mode = "CRD"> (x)', IMAGE[:1], weights="int64[6] s1 = {1, 16, 2, 2, 56, 56}, int64[4] s2 = {1, 16, 112, 112}"),
    Case("space to depth", "a = Reshape (x, s1) t = Transpose <perm = [0, 3, 5, 1, 2, 4]> (a) y = Reshape (t, s2)", "y = SpaceToDepth <blocksize = 2> (x)", IMAGE[:1], weights="int64[6] s1 = {1, 64, 28, 2, 28, 2}, int64[4] s2 = {1, 256, 28, 28}"),
    Case("mean over the image", "y = ReduceMean (x, sp)", "y = GlobalAveragePool (x)", IMAGE, applied=False, weights="int64[2] sp = {2, 3}"),
    Case("x + x g", "c = Conv (x, k) p = GlobalAveragePool (c) f = Conv (p, k) h = HardSigmoid (f) m = Mul (c, h) y = Add (c, m)", "c = Conv (x, k) p = GlobalAveragePool (c) f = Conv (p, k2) h = Clip (f, one, two) y = Mul (c, h)", IMAGE[:1], weights="float[64, 64, 1, 1] k, float[64, 64, 1, 1] k2"),
    Case("attention with heads", f"{HEADS} {SPLIT}", f"{HEADS} y = Attention <q_num_heads = H, kv_num_heads = H, scale = 0.25> (q, k, v)", ((1, 16, 384), (1, 128, 384), (8, 16, 64)), opset=23, weights=PROJECT),
    Case("attention without heads", "kt = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul (x, kt) t = Mul (s, quarter) p = Softmax (t) y = MatMul (p, k)", "y = Attention <scale = 0.25> (x, k, k)", ((1, 12, 16, 32), (1, 12, 128, 64)), opset=23, weights="float[S] k"),
    Case("MatMul and Add, matrices", "m = MatMul (x, k) y = Add (m, b)", "y = Gemm (x, k, b)", ((1, 64), (1, 1024), (8, 256), (16, 64), (128, 384), (128, 768)), weights="float[C, C] k, float[C] b"),
    Case("MatMul and Add, three dimensions", "m = MatMul (x, k) y = Add (m, b)", "f = Reshape (x, s1) g = Gemm (f, k, b) y = Reshape (g, s2)", TEXT, applied=False, weights="float[C, C] k, float[C] b, int64[2] s1 = {-1, C}, int64[3] s2 = {-1, B, C}"),
    Case("Transpose and MatMul", "t = Transpose <perm = [1, 0]> (x) y = MatMul (t, k)", "y = Gemm <transA = 1> (x, k)", ((64, 64), (256, 256)), weights="float[C, C] k"),
    Case("MatMul and Transpose", "t = Transpose <perm = [1, 0]> (x) y = MatMul (k, t)", "y = Gemm <transB = 1> (k, x)", ((64, 64), (256, 256)), weights="float[C, C] k"),
    Case("three MatMuls of one input", "q1 = MatMul (x, wq) q = Add (q1, b) k1 = MatMul (x, wk) k = Add (k1, b) v1 = MatMul (x, wv) v = Add (v1, b) t = Add (q, k) y = Add (t, v)", "m = MatMul (x, wa) n = Add (m, ba) q, k, v = Split <axis = -1, num_outputs = 3> (n) t = Add (q, k) y = Add (t, v)", ((1, 16, 384), (1, 128, 384)), applied=False, weights="float[C, C] wq, float[C, C] wk, float[C, C] wv, float[C] b, float[C, D] wa, float[D] ba"),
]  # fmt: skip


def graph(case: Case, body: str, shape: tuple[int, ...]) -> onnx.ModelProto:
    """One side of a case on one shape; weights are seeded by their names."""
    numbers = ", ".join(f"float {name} = {{{value:.9f}}}" for name, value in NUMBERS.items())
    letters = {
        "C]": f"{shape[-1]}]",
        "C,": f"{shape[-1]},",
        "C}": f"{shape[-1]}}}",
        "B]": f"{shape[1]}]",
    }
    letters |= {"[B": f"[{shape[1]}", " B,": f" {shape[1]},", "D]": f"{3 * shape[-1]}]"}
    letters |= {"S]": ", ".join(map(str, shape)) + "]"}
    weights = case.weights
    for letter, size in letters.items():
        weights = weights.replace(letter, size)
    body = body.replace("= H,", f"= {max(1, shape[-1] // 32)},")
    proto = onnx.parser.parse_model(
        f'<ir_version: {8 if case.opset < 19 else 10}, opset_import: ["" : {case.opset}]> '
        f"g (float[{', '.join(map(str, shape))}] x) => (float y) "
        f"<{numbers}, int64[1] last = {{-1}}{', ' * bool(weights)}{weights}> {{ {body} }}"
    )
    for info in proto.graph.value_info:
        dims = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        rng = np.random.default_rng(crc32(info.name.encode()))
        scale = 1 / max(dims[0], 1) ** 0.5
        values = (rng.normal(size=dims) * scale).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, info.name))
    del proto.graph.value_info[:]
    return proto


def made_by_runtime(proto: onnx.ModelProto, folder: Path) -> str:
    """The operators that onnxruntime runs in the end."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]
    return " ".join(found[:12]) + " ..." * (len(found) > 12)


def processor_seconds(
    sessions: dict[str, Any], feeds: Feeds, rounds: int
) -> dict[str, list[float]]:
    """The shortest run of each session in each round; they take turns."""
    repeats: dict[str, int] = {}
    for name, session in sessions.items():
        session.run(None, feeds)
        repeats[name] = max(3, int(0.015 / max(_shortest(session, feeds, 3), 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, session in sessions.items():
            times[name].append(_shortest(session, feeds, repeats[name]))
    return times


def _shortest(session: Any, feeds: Feeds, repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        started = time.thread_time()
        session.run(None, feeds)
        best = min(best, time.thread_time() - started)
    return best


def measure(case: Case, shape: tuple[int, ...], rounds: int, folder: Path) -> Row:
    """Runs both sides in turn."""
    sides = {"formula": case.formula, "operator": case.operator}
    protos = {name: graph(case, body, shape) for name, body in sides.items()}
    feeds: Feeds = {"x": np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    sessions = {name: open_session(proto.SerializeToString()) for name, proto in protos.items()}
    times = processor_seconds(sessions, feeds, rounds)
    middle, spread = ratio(times["operator"], times["formula"])
    return {
        "formula": case.name,
        "operator": " ".join(node.op_type for node in protos["operator"].graph.node[-6:]),
        "applied": "yes" if case.applied else "no",
        "shape": "x".join(map(str, shape)),
        "opset": case.opset,
        "ratio": middle,
        "spread": spread,
        "microseconds": float(np.median(times["formula"])) * 1e6,
        "runtime": made_by_runtime(protos["formula"], folder),
    }


def main() -> None:
    options = parser(__doc__ or "", models=False)
    options.add_argument("--only", default="", help="only cases whose name has this in it")
    options.add_argument("--rounds", type=int, default=15)
    chosen = options.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        for case in CASES:
            if chosen.only not in case.name:
                continue
            for shape in case.shapes:
                rows.append(measure(case, shape, chosen.rounds, Path(temporary)))
                say("  ".join(f"{name}={rows[-1][name]}" for name in COLUMNS))
    slower = [
        f"slower than the formula, and built all the same: {row['formula']} on {row['shape']}: {row['ratio']:.2f}"
        for row in rows
        if row["applied"] == "yes" and row["ratio"] > 1.03
    ]
    write_results(
        chosen.output or RESULTS / "fusions.json",
        "Formulas and the operators that stand for them",
        rows,
        COLUMNS,
        notes=["ratio: time of the operator over time of the formula", *slower],
    )


if __name__ == "__main__":
    main()
