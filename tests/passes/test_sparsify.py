"""sparsify: zeros where they cost least."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.compare import compare
from onnxcomp.errors import RecipeError, SamplesError
from onnxcomp.ir import Model
from onnxcomp.pipeline import Pipeline
from onnxcomp.quant.grams import gram_readers
from onnxcomp.recipe import make, parse_steps
from onnxcomp.runtime import Session
from onnxcomp_passes.prune.sparsify import Sparsify
from onnxcomp_passes.prune.support.allocation import noises, spread
from onnxcomp_passes.prune.support.moments import Moments
from onnxcomp_passes.prune.support.sparse_fit import Problem
from onnxcomp_passes.prune.support.sparse_walk import SparseWalk, put_sparse
from onnxcomp_passes.prune.support.sparsity import Pattern, mask, parse_pattern
from tests.helpers.check import assert_refuses, assert_rolls_back
from tests.helpers.text import model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxcomp.pipeline import Result

NET = """
    g (float[1, 4, 8, 8] x) => (float[1, 8] y)
    <float[16, 4, 3, 3] w0, float[16] b0, float[16, 1, 3, 3] d, float[16, 4, 1, 1] g4, float[16, 8] w2, float[8] b2> {
      c0 = Conv <kernel_shape = [3, 3]> (x, w0, b0)
      r0 = Relu (c0)
      c1 = Conv <kernel_shape = [3, 3], group = 16> (r0, d)
      c2 = Conv <group = 4> (c1, g4)
      p = GlobalAveragePool (c2)
      f = Flatten (p)
      m = MatMul (f, w2)
      y = Add (m, b2)
    }"""


def samples(count: int = 32, *, seed: int = 2) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    # Channels that go together, so that one can stand in for another.
    mix = rng.normal(size=(4, 2)) @ rng.normal(size=(2, 4))
    images = rng.normal(size=(count, 4, 64)).transpose(0, 2, 1) @ mix
    return [{"x": i.T.reshape(1, 4, 8, 8).astype("f4")} for i in images]


def run(feeds: Sequence[Mapping[str, np.ndarray]] | None, **options: Any) -> Result:
    return Pipeline((Sparsify(**options),)).run(model(NET), samples=feeds, threads=1)


def decibels(result: Result) -> float:
    with Session.open(model(NET)) as before, Session.open(result.model) as after:
        return compare(before, after, samples(8)).worst("sqnr_db") or 0.0


def weights(result: Result) -> dict[str, np.ndarray]:
    found = result.model.graph.initializers.items()
    return {name: value.const_value.numpy() for name, value in found if value.const_value}


def test_half_of_every_weight_becomes_zero() -> None:
    found = weights(run(samples(), spread="uniform"))
    for name in ("w0", "g4", "w2"):
        assert np.mean(found[name] == 0) == pytest.approx(0.5, abs=0.03)
    assert np.all(found["d"] != 0), (
        "each channel of a depthwise Conv has few weights, and needs them"
    )


def test_more_goes_where_it_costs_less() -> None:
    found = weights(run(samples(), sparsity=0.6))
    zeros = {name: np.mean(found[name] == 0) for name in ("w0", "w2")}
    total = sum((found[name] == 0).sum() for name in zeros) / sum(found[n].size for n in zeros)
    assert total == pytest.approx(0.6, abs=0.05)
    assert abs(zeros["w0"] - zeros["w2"]) > 0.1


@pytest.mark.parametrize("pattern", ["", "2:4", "4x1"])
def test_samples_keep_outputs_nearer_than_magnitudes(pattern: str) -> None:
    plain = run(samples(), pattern=pattern, method="magnitude")
    fitted = run(samples(), pattern=pattern)
    assert decibels(fitted) > decibels(plain) + 1


def test_two_of_four_stay() -> None:
    found = weights(run(samples(), pattern="2:4"))
    # Of four input channels, at each place of the kernel: what TensorRT looks for.
    assert ((found["w0"] != 0).sum(axis=1) <= 2).all()
    assert ((found["g4"] != 0).sum(axis=1) <= 2).all()
    columns = found["w2"].T.reshape(8, -1, 4)
    assert ((columns != 0).sum(axis=2) <= 2).all()


def test_outputs_that_go_together() -> None:
    found = weights(run(samples(), pattern="4x1"))["w0"].reshape(4, 4, -1)
    zero = found == 0
    assert (zero.all(axis=1) == zero.any(axis=1)).all()


def test_weights_that_do_not_divide_stay() -> None:
    text = "g (float[N, 5] x) => (float[N, 16] y) <float[5, 16] w> { y = MatMul (x, w) }"
    assert_refuses(Sparsify(pattern="2:4"), text, code="SPA101")


def test_nothing_to_do_is_said() -> None:
    assert_refuses(Sparsify(), "g (float[2] x) => (float[2] y) { y = Relu (x) }", code="SPA103")


def test_without_samples_it_says_so() -> None:
    result = run(None)
    assert [d.code for d in result.diagnostics] == ["SPA104", "SPA106"]
    assert np.mean(weights(result)["w0"] == 0) == pytest.approx(0.5, abs=0.03)


def test_everything_can_be_taken_back() -> None:
    assert_rolls_back(Sparsify(), model(NET), samples())


@pytest.mark.parametrize("text", ["4:2", "2:", "x1", "4x65", "0:4", "a:b", "1x1", "0x4", "4x"])
def test_patterns_that_mean_nothing(text: str) -> None:
    with pytest.raises(RecipeError, match="2:4"):
        make("sparsify", {"pattern": text})


def test_a_weight_that_two_read_stays() -> None:
    text = """g (float[4, 16] x, float[4, 16] z) => (float[4, 16] y) <float[16, 16] w> {
        a = MatMul (x, w) b = MatMul (z, w) y = Add (a, b) }"""
    before = Model.load(model(text)).to_proto()
    result = Pipeline((Sparsify(),)).run(model(text))
    assert result.model.to_proto() == before


WAYS: list[Any] = ["magnitude", "wanda", "sparsegpt", "alps"]
PATTERNS = [
    *(Pattern(), Pattern(2, 4), Pattern(1, 2), Pattern(1, 4)),
    *(Pattern(block=2), Pattern(span=4), Pattern(block=2, span=2)),
]


@settings(max_examples=40, deadline=None)
@given(
    parts=st.integers(1, 5),
    outputs=st.integers(1, 4),
    pattern=st.sampled_from(PATTERNS),
    sparsity=st.sampled_from([0.25, 0.5, 0.75]),
    seed=st.integers(0, 99),
)
def test_every_way_keeps_to_the_pattern(
    parts: int, outputs: int, pattern: Pattern, sparsity: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    inputs, outputs = 4 * parts, outputs * pattern.block
    weight = rng.normal(size=(inputs, outputs))
    rows = rng.normal(size=(50, inputs)) @ rng.normal(size=(inputs, inputs))
    sums = Moments(1, inputs, outputs, biased=True)
    sums.add(rows[None], (rows @ weight)[None])
    problem = Problem(weight, sums, sums, sparsity, pattern)
    share = pattern.share(sparsity)
    errors = {}
    for way in WAYS:
        found = problem.best([way])
        errors[way] = found.error
        zeros = found.weight == 0
        assert zeros.mean() == pytest.approx(share, abs=0.5 * pattern.span / inputs + 1e-9)
        if pattern.width:
            assert (
                zeros.reshape(-1, pattern.width, outputs).sum(1) >= pattern.width - pattern.kept
            ).all()
        tiles = zeros.reshape(-1, pattern.span, outputs // pattern.block, pattern.block)
        assert (tiles.all((1, 3)) == tiles.any((1, 3))).all()
    assert errors["alps"] <= errors["sparsegpt"] * 1.001 + 1e-9
    assert problem.best(WAYS).error == min(errors.values())


def test_masks_keep_the_highest_scores() -> None:
    scores = np.array([[1.0, 9.0], [4.0, 2.0], [3.0, 8.0], [2.0, 7.0]])
    assert mask(scores, 0.5, Pattern()).tolist() == [
        [False, True], [True, False], [True, True], [False, False],
    ]  # fmt: skip
    assert mask(scores, 0.5, Pattern(1, 2)).tolist() == [
        [False, True], [True, False], [True, True], [False, False],
    ]  # fmt: skip
    assert parse_pattern("2:4") == Pattern(2, 4)


def test_shares_reach_the_goal_together() -> None:
    levels = np.array([0.3, 0.4, 0.5, 0.6, 0.7])
    costs = {"flat": levels * 0 + 1e-3 * levels, "steep": levels**2, "steeper": 5 * levels**2}
    sizes = {"flat": 100, "steep": 100, "steeper": 250}
    found = spread(costs, sizes, levels, 0.5)
    assert found["flat"] == pytest.approx(0.7)
    assert found["steep"] > found["steeper"]
    total = sum(found[name] * sizes[name] for name in sizes)
    assert total / 450 == pytest.approx(0.5)


LINEAR = (
    "g (float[{x}] x) => (y) <float[{w}] w, float[{b}] b> {{ m = MatMul ({of}) y = Add (m, b) }}"
)


@pytest.mark.parametrize(
    ("x", "w", "b", "of"),
    [
        ("2, 16", "16, 8", "1, 1, 8", "x, w"),
        ("16, 5", "8, 16", "8, 1", "w, x"),
        ("16, 8", "8, 16", "8", "w, x"),
        ("2, 3, 16", "2, 16, 8", "1", "x, w"),
        ("8, 16", "16, 8", "8, 1", "x, w"),
    ],
)
def test_only_a_bias_of_the_outputs_is_moved_and_keeps_its_rank(
    x: str, w: str, b: str, of: str
) -> None:
    text = LINEAR.format(x=x, w=w, b=b, of=of)
    shape = tuple(int(size) for size in x.split(","))
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(1, 1, shape).astype("f4")} for _ in range(16)]
    step = Sparsify(method="magnitude" if b == "1, 1, 8" else "sparsegpt", spread="uniform")
    for each in (step, Sparsify(method="wanda", spread="uniform")):
        result = Pipeline((each,)).run(model(text), samples=feeds, threads=1)
        with Session.open(model(text)) as before, Session.open(result.model) as after:
            assert before.run(feeds[0])["y"].shape == after.run(feeds[0])["y"].shape
        moved = weights(result)["b"]
        if b != "1, 1, 8":
            fresh = weights(Pipeline(()).run(model(text)))["b"]
            np.testing.assert_array_equal(moved, fresh)


def test_what_a_gemm_multiplies_a_bias_with_is_not_ignored() -> None:
    text = """
        g (float[2, 16] x) => (y) <float[16, 8] w, float[8] b> { y = Gemm <beta = 0.5> (x, w, b) }"""
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(1, 1, (2, 16)).astype("f4")} for _ in range(16)]
    result = Pipeline((Sparsify(),)).run(model(text), samples=feeds, threads=1)
    np.testing.assert_array_equal(weights(result)["b"], weights(Pipeline(()).run(model(text)))["b"])


def test_recurrent_weights_are_no_bias() -> None:
    text = """
        g (float[3, 1, 32] x) => (y) <float[1, 4, 32] w, float[1, 4, 1] r> {
          y = LSTM <hidden_size = 1> (x, w, r)
        }"""
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(1, 1, (3, 1, 32)).astype("f4")} for _ in range(16)]
    result = Pipeline((Sparsify(),)).run(model(text), samples=feeds, threads=1)
    assert weights(result)["r"].shape == (1, 4, 1)
    assert np.mean(weights(result)["w"] == 0) == pytest.approx(0.5)


def test_a_weight_of_a_constant_node() -> None:
    numbers = ", ".join(str(index % 7 + 1) for index in range(64))
    text = f"""
        g (float[2, 8] x) => (y) {{
          w = Constant <value = float[8, 8] {{{numbers}}}> ()
          y = MatMul (x, w)
        }}"""
    for feeds in (None, [{"x": np.full((2, 8), i, "f4")} for i in range(8)]):
        result = Pipeline((Sparsify(),)).run(model(text), samples=feeds, threads=1)
        (found,) = weights(result).values()
        assert np.mean(found == 0) == pytest.approx(0.5)
        assert [node.op_type for node in result.model.graph] == ["MatMul"]


@pytest.mark.parametrize("pattern", ["", "2:4", "4x1"])
def test_a_layer_that_reads_nothing_but_zeros(pattern: str) -> None:
    text = "g (float[2, 16] x) => (y) <float[16, 8] w> { y = MatMul (x, w) }"
    feeds = [{"x": np.zeros((2, 16), "f4")} for _ in range(8)]
    result = Pipeline((Sparsify(pattern=pattern),)).run(model(text), samples=feeds, threads=1)
    assert np.isfinite(weights(result)["w"]).all()


def test_a_layer_that_held_out_samples_do_not_reach_stays() -> None:
    text = """
        g (float[4, 16] x) => (y, q)
        <float[16, 8] w, float[16, 8] v, int64[1] last = {1}, float high = {90.0}> {
          c = ReduceMax <keepdims = 0> (x, last)
          b = Greater (c, high)
          k = Compress <axis = 0> (x, b)
          y = MatMul (k, w)
          q = MatMul (x, v)
        }"""
    rng = np.random.default_rng(0)
    feeds = [
        {"x": rng.normal(50 if index % 4 == 3 else 100, 1, (4, 16)).astype("f4")}
        for index in range(16)
    ]
    step = Sparsify(spread="uniform", method="sparsegpt")
    result = Pipeline((step,)).run(model(text), samples=feeds, threads=1)
    assert np.mean(weights(result)["v"] == 0) == pytest.approx(0.5)
    assert np.all(weights(result)["w"] != 0)


def fitted(text: str, feeds: Sequence[Mapping[str, np.ndarray]], **options: Any) -> Result:
    return Pipeline((Sparsify(**options),)).run(model(text), samples=feeds, threads=1)


def sqnr(text: str, result: Result, feeds: Sequence[Mapping[str, np.ndarray]]) -> float:
    with Session.open(model(text)) as before, Session.open(result.model) as after:
        return compare(before, after, feeds).worst("sqnr_db") or 0.0


PRODUCT = "g (float[N, 16] x) => (float[N, 8] y) <float[16, 8] w> { y = MatMul (x, w) }"


@pytest.mark.parametrize("pattern", ["", "2:4", "8x1"])
def test_what_is_redundant_goes_first(pattern: str) -> None:
    rng = np.random.default_rng(0)
    # Each input comes twice, side by side: one of the two can do the work of both.
    feeds = [{"x": np.repeat(rng.normal(size=(32, 8)), 2, axis=1).astype("f4")} for _ in range(16)]
    result = fitted(PRODUCT, feeds, pattern=pattern)
    assert np.mean(weights(result)["w"] == 0) == pytest.approx(0.5)
    plain = fitted(PRODUCT, feeds, pattern=pattern, method="magnitude")
    assert sqnr(PRODUCT, result, feeds) > sqnr(PRODUCT, plain, feeds) + 15


@pytest.mark.parametrize(
    ("shapes", "node", "axis"),
    [
        ("float[2, 16] x, 16, 8", "y = MatMul (x, w)", 0),
        ("float[2, 16] x, 8, 16", "y = Gemm <transB = 1> (x, w)", 1),
        ("float[16, 2] x, 16, 8", "y = Gemm <transA = 1> (x, w)", 0),
        ("float[16, 2] x, 8, 16", "y = MatMul (w, x)", 1),
        ("float[1, 8, 5, 5] x, 6, 8, 3, 3", "y = Conv (x, w)", 1),
        ("float[1, 8, 5] x, 6, 4, 3", "y = Conv <group = 2> (x, w)", 1),
        ("float[1, 8, 5, 5] x, 8, 6, 3, 3", "y = ConvTranspose (x, w)", 0),
        ("float[3, 1, 16] x, 1, 16, 16", "y = LSTM <hidden_size = 4> (x, w, r)", 2),
    ],
)
@pytest.mark.parametrize("method", ["auto", "magnitude"])
def test_the_pattern_lies_along_input_channels(
    shapes: str, node: str, axis: int, method: str
) -> None:
    name, _, weight = shapes.partition(" x, ")
    extra = ", float[1, 16, 4] r" if "LSTM" in node else ""
    text = f"g ({name} x) => (y) <float[{weight}] w{extra}> {{ {node} }}"
    rng = np.random.default_rng(0)
    shape = [int(size) for size in name.removeprefix("float[").rstrip("]").split(",")]
    feeds = [{"x": rng.normal(1, 1, shape).astype("f4")} for _ in range(16)]
    found = weights(fitted(text, feeds, pattern="2:4", method=method))["w"]
    turned = np.moveaxis(found, axis, -1)
    groups = (turned != 0).reshape(*turned.shape[:-1], -1, 4).sum(axis=-1)
    assert (groups <= 2).all()
    assert np.mean(found == 0) == pytest.approx(0.5)


def test_blocks_of_inputs() -> None:
    found = weights(run(samples(), pattern="1x4"))
    zero = found["w0"] == 0
    assert (zero.all(axis=1) == zero.any(axis=1)).all()
    assert zero.any()


def test_held_out_rows_decide() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(8, 4))
    rows = rng.normal(size=(64, 4))
    sums, judge = Moments(1, 8, 4, biased=False), Moments(1, 8, 4, biased=False)
    # Inputs that go together here go against each other there: to make up for one harms.
    for each, sign in ((sums, 1.0), (judge, -1.0)):
        both = np.concatenate([rows, sign * rows], axis=1)
        each.add(both[None], (both @ weight)[None])
    problem = Problem(weight, sums, judge, 0.5, Pattern())
    assert problem.best(WAYS).way == "magnitude"
    assert (
        Problem(weight, sums, sums, 0.5, Pattern()).best(WAYS).error
        < 1e-3 * np.square(np.concatenate([rows, rows], axis=1) @ weight).sum()
    )


def test_what_does_not_help_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(walk: SparseWalk, samples: object) -> None:
        del samples
        for layer, _ in walk.pairs:
            put_sparse(walk.ctx.edit, layer, np.zeros(layer.read().shape))

    monkeypatch.setattr(SparseWalk, "run", spoil)
    result = run(samples())
    assert "SPA105" in [each.code for each in result.diagnostics]
    plain = weights(run(samples(), method="magnitude"))
    for name, array in weights(result).items():
        np.testing.assert_array_equal(array, plain[name])


def test_layers_without_zeros_make_up_for_the_others() -> None:
    helped, alone = run(samples(), pattern="1:4"), run(samples(), pattern="1:4", skip=("d",))
    assert decibels(helped) > decibels(alone)
    fresh = weights(Pipeline(()).run(model(NET)))
    np.testing.assert_array_equal(weights(alone)["d"], fresh["d"])


def test_weights_in_half_precision() -> None:
    text = """
        g (float16[N, 16] x) => (float16[N, 8] y) <float16[16, 8] w, float16[8] b> {
          m = MatMul (x, w) y = Add (m, b) }"""
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(4, 16)).astype("f2")} for _ in range(16)]
    found = weights(fitted(text, feeds))["w"]
    assert found.dtype == np.float16
    assert np.mean(found == 0) == pytest.approx(0.5)


def test_weights_that_are_no_numbers_stay() -> None:
    proto = Model.load(
        model(
            """g (float[4, 16] x) => (y, z) <float[16, 8] v, float[16, 8] w> {
            y = MatMul (x, v) z = MatMul (x, w) }"""
        )
    ).to_proto()
    broken = np.full((16, 8), np.nan, "f4")
    for tensor in proto.graph.initializer:
        if tensor.name == "v":
            tensor.CopyFrom(onnx.numpy_helper.from_array(broken, "v"))
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(4, 16)).astype("f4")} for _ in range(8)]
    found = weights(Pipeline((Sparsify(),)).run(proto, samples=feeds, threads=1))
    np.testing.assert_array_equal(found["v"], broken)
    assert np.mean(found["w"] == 0) == pytest.approx(0.5)


def test_activations_that_are_no_numbers_are_named() -> None:
    text = """
        g (float[N, 16] x) => (float[N, 8] y) <float[16, 8] w> { l = Log (x) y = MatMul (l, w) }"""
    feeds = [{"x": np.full((4, 16), -1, "f4")} for _ in range(8)]
    with pytest.raises(SamplesError, match="NaN"):
        fitted(text, feeds, method="sparsegpt", spread="uniform")


def test_nothing_to_multiply() -> None:
    text = "g (float[0, 16] x) => (y) <float[16, 8] w> { y = MatMul (x, w) }"
    feeds = [{"x": np.zeros((0, 16), "f4")} for _ in range(8)]
    found = weights(fitted(text, feeds, method="sparsegpt"))
    np.testing.assert_array_equal(found["w"], weights(Pipeline(()).run(model(text)))["w"])


def test_weights_that_callers_may_replace_stay() -> None:
    text = "g (float[4, 16] x, float[16, 8] w) => (y) <float[16, 8] w> { y = MatMul (x, w) }"
    assert_refuses(Sparsify(), text, code="SPA103")


@pytest.mark.parametrize("then", ["", ",adaround"])
def test_zeros_stay_zeros_when_quantized(then: str) -> None:
    steps = parse_steps(f"sparsify{{pattern=2:4}},quantize-static{{placement=all}}{then}")
    made = Pipeline(steps).run(model(NET), samples=samples(), threads=1).model.to_proto()
    known = {each.name: onnx.numpy_helper.to_array(each) for each in made.graph.initializer}
    checked = 0
    for node in made.graph.node:
        weight = known.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if weight is None or weight.shape[-2:] != (3, 3) or weight.shape[1] != 4:
            continue
        zero = known[node.input[2]] if len(node.input) > 2 else np.zeros(1)
        assert not zero.any()
        assert ((weight != 0).sum(axis=1) <= 2).all()
        checked += 1
    assert checked == 1


def test_weights_in_bodies() -> None:
    text = """
        g (float[4, 16] x, bool c) => (float[4, 8] y) <float[16, 8] v> {
          y = If (c) <
            then_branch = a () => (float[4, 8] t) { t = MatMul (x, v) },
            else_branch = b () => (float[4, 8] e) <float[16, 8] w> { e = MatMul (x, w) }
          >
        }"""
    rng = np.random.default_rng(0)
    feeds = [
        {"x": rng.normal(size=(4, 16)).astype("f4"), "c": np.array(index % 2 == 0)}
        for index in range(32)
    ]
    result = fitted(text, feeds)
    assert result.changed
    assert sqnr(text, result, feeds) > 5
    # What the branch captured is not left behind beside what it has now.
    assert not result.model.graph.initializers


def test_noise_of_the_outputs_tells_layers_apart() -> None:
    text = """
        g (float[4, 16] x) => (y) <float[16, 8] v, float[16, 8] w, float small = {0.01}> {
          a = MatMul (x, v) b = MatMul (x, w) c = Mul (b, small) y = Add (a, c) }"""
    source = Model.load(model(text))
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(4, 16)).astype("f4")} for _ in range(4)]
    layers = gram_readers(source)
    changed = {layer.name: layer.read() * 0.5 for layer in layers}
    found = [*noises(source, layers, changed, feeds).values()]
    assert found[0] > 1000 * found[1] > 0
    assert found[0] == pytest.approx(4 * 0.25, rel=0.1)


@pytest.mark.parametrize("sparsity", [0.03, 0.2, 0.9, 0.99])
def test_any_share_is_reached(sparsity: float) -> None:
    text = """
        g (float[4, 64] x) => (y) <float[64, 32] v, float[32, 32] w> {
          h = MatMul (x, v) r = Relu (h) y = MatMul (r, w) }"""
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(4, 64)).astype("f4")} for _ in range(16)]
    found = weights(fitted(text, feeds, sparsity=sparsity))
    zeros = sum((array == 0).sum() for array in found.values())
    assert zeros / (96 * 32) == pytest.approx(sparsity, abs=0.01)


@pytest.mark.filterwarnings("error")
def test_inputs_that_are_never_active_go_first() -> None:
    text = """
        g (float[4, 64] x) => (y) <float[64, 32] v, float[32, 32] w> {
          h = MatMul (x, v) r = Relu (h) y = MatMul (r, w) }"""
    rng = np.random.default_rng(0)
    active = np.arange(64) % 4 == 0
    feeds = [{"x": (rng.normal(size=(4, 64)) * active).astype("f4")} for _ in range(16)]
    found = weights(fitted(text, feeds))
    assert np.mean(found["v"][~active] == 0) > 0.75
    assert np.mean(found["v"][active] == 0) < 0.3
