"""`compress` keeps what is measured to be better, and says plainly when nothing is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

import onnxcomp
from onnxcomp import demo
from onnxcomp.analysis.sensitivity import NodeDamage, most_harmful, node_damage, quantized_nodes
from onnxcomp.bench import Spread, Timing
from onnxcomp.errors import RuntimeUnavailableError, SamplesError
from onnxcomp.ir import Model
from onnxcomp.metrics import Score
from onnxcomp.search import Search
from onnxcomp.trials import SearchOptions, Trial
from onnxcomp.verdict import conversions, explained

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from onnxcomp.variants import Prefer


def images(count: int) -> list[dict[str, np.ndarray]]:
    with np.load(demo.CALIBRATION) as data:
        return [{"image": image} for image in data["image"][:count]]


def small_run(
    metric: str | Callable[..., Any] | None = None, **options: Any
) -> onnxcomp.CompressResult:
    return onnxcomp.compress(
        demo.MODEL, samples=images(32), metric=metric, seconds=0.3, memory=False, **options
    )


@pytest.mark.slow
def test_real_model_gets_smaller_and_its_own_report_says_so() -> None:
    result = small_run(max_drop=0.1)
    assert result.met
    assert result.chosen.label.startswith("int8")
    assert result.model.nbytes < 0.4 * Model.load(demo.MODEL).nbytes
    rows = {row.label: row for row in result.report.models}
    assert rows["original"].metrics["fidelity"] == 1.0
    assert f"{result.chosen.label} (chosen)" in rows
    assert result.report.gates[0].met
    assert "held out" in " ".join(result.report.notes)


@pytest.mark.slow
def test_unreachable_quality_ends_in_the_float_model_and_a_plain_word() -> None:
    calls = []

    def strict(outputs: Sequence[Mapping[str, np.ndarray]], labels: Mapping[str, Any]) -> float:
        del labels
        scores = np.concatenate([output["scores"] for output in outputs])
        calls.append(scores)
        return 1.0 if np.allclose(scores, calls[0], rtol=1e-4, atol=1e-4) else 0.0

    result = small_run(strict, max_drop=0.01, trials=2)
    assert result.chosen.label in {"original", "simplified"}
    assert result.met
    codes = [diagnostic.code for diagnostic in result.report.diagnostics]
    assert "CMP202" in codes
    assert all(trial.rejected for trial in result.trials if trial.label.startswith("int8"))


def test_too_few_samples_are_refused_before_any_work() -> None:
    with pytest.raises(SamplesError, match="cannot be divided"):
        onnxcomp.compress(demo.MODEL, samples=images(1))


def test_targets_that_are_not_here_are_refused_before_any_work() -> None:
    with pytest.raises(RuntimeUnavailableError, match="quantize static --target qnn"):
        onnxcomp.compress(demo.MODEL, samples=images(8), target="qnn")


def trial(label: str, ratio: float, *, rejected: str = "", text: str = "") -> Trial:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[1] x) => (float[1] y)'
        f"{text or '<float[1] w = {1}>'} {{ y = Neg (x) }}"
    )
    spread = Spread(ratio, ratio, ratio, ratio, ratio)
    timing = Timing(label, spread, spread, 1)
    score = Score({"fidelity": 1.0})
    return Trial(label, "", Model.load(proto), (), score, 0.0, timing, rejected)


def choice(*trials: Trial, prefer: Prefer = "speed") -> str:
    found = Search.__new__(Search)
    found.trials = list(trials)
    found.options = SearchOptions(prefer=prefer)
    return found.choose().label


LARGE = "<float[9] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}>"


def test_fastest_inside_the_limit_is_chosen() -> None:
    trials = [
        trial("original", 1.0),
        trial("a", 0.8),
        trial("b", 0.5),
        trial("c", 0.3, rejected="bad"),
    ]
    assert choice(*trials) == "b"


def test_of_equally_fast_ones_the_smallest_is_chosen() -> None:
    assert choice(trial("original", 1.0), trial("a", 0.500, text=LARGE), trial("b", 0.505)) == "b"
    assert choice(trial("original", 1.0), trial("a", 0.500, text=LARGE), trial("b", 0.55)) == "a"


def test_of_about_equal_ones_the_best_is_chosen() -> None:
    a, b = trial("a", 0.500, text=LARGE), replace(trial("b", 0.501, text=LARGE), drop=-0.001)
    assert choice(trial("original", 1.0), a, b) == "b"


def test_size_may_come_first_as_long_as_nothing_gets_slower() -> None:
    fast = trial("fast", 0.5, text=LARGE)
    small = trial("small", 0.9)
    slow = trial("slow", 1.2, text="<float w = {1}>")
    original = trial("original", 1.0, text=LARGE.replace("9]", "10]").replace("9}", "9, 10}"))
    assert choice(original, fast, small, slow, prefer="size") == "small"
    assert choice(original, fast, small, slow) == "fast"


def test_original_stays_when_everything_else_is_slower() -> None:
    assert (
        choice(trial("original", 1.0), trial("simplified", 1.2), trial("int8", 1.5)) == "original"
    )


def test_float_result_is_explained() -> None:
    trials = [trial("original", 1.0), trial("simplified", 0.9)]
    assert "nothing in this model could be quantized" in explained(trials[1], trials)[0].message
    lossy = replace(trial("int8", 0.5, rejected="top1 drops by 9.00%, limit 1.00%"), drop=0.09)
    message = explained(trials[1], [*trials, lossy])[0].message
    assert "no quantized candidate stayed inside the limit" in message
    slow = trial("int8", 1.5)
    assert "was faster than float" in explained(trials[1], [*trials, slow])[0].message
    assert explained(slow, [*trials, slow]) == []


QDQ = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[4, 3] x) => (float[4, 3] y)
<float s = {SCALE}, uint8 z = {128}, float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9},
 int8[3, 3] wq = {1, 2, 3, 4, 5, 6, 7, 8, 9}, float ws = {1}, int8 wz = {0}>
{
    xq = QuantizeLinear (x, s, z)
    xd = DequantizeLinear (xq, s, z)
    wd = DequantizeLinear (wq, ws, wz)
    [product] m = MatMul (xd, wd)
    mq = QuantizeLinear (m, ms, z)
    md = DequantizeLinear (mq, ms, z)
    [sum] y = Add (md, m)
}
"""
FLOAT = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[4, 3] x) => (float[4, 3] y) <float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}>
{ [product] m = MatMul (x, w) [sum] y = Add (m, m) }
"""


def test_damage_is_found_where_it_was_done() -> None:
    coarse = QDQ.replace("SCALE", "1").replace("<float s", "<float ms = {0.3}, float s")
    original = Model.load(onnx.parser.parse_model(FLOAT))
    quantized = Model.load(onnx.parser.parse_model(coarse))
    before = quantized.to_proto().SerializeToString(deterministic=True)
    rng = np.random.default_rng(0)
    samples = [{"x": rng.standard_normal((4, 3)).astype(np.float32)} for _ in range(4)]
    found = node_damage(original, quantized, samples)
    assert [damage.name for damage in found] == ["product", "sum"]
    assert found[0].gain > 10 * abs(found[1].gain)
    assert [node.name for node in quantized_nodes(quantized)] == ["product", "sum"]
    assert quantized.to_proto().SerializeToString(deterministic=True) == before


def test_most_harmful_nodes_cover_the_share_asked_for() -> None:
    damages = [
        NodeDamage(name, "Conv", 0.0, gain)
        for name, gain in [("a", 6), ("b", 3), ("c", 1), ("d", -5)]
    ]
    assert most_harmful(damages, 0.5) == ["a"]
    assert most_harmful(damages, 0.8) == ["a", "b"]
    assert most_harmful(damages, 1.0) == ["a", "b", "c"]


def test_weights_that_were_scaled_before_rounding_are_not_put_back() -> None:
    text = QDQ.replace("SCALE", "0.02").replace("<float s", "<float ms = {0.3}, float s")
    scaled = text.replace("int8[3, 3] wq = {1, 2,", "int8[3, 3] wq = {9, 2,")
    samples = [{"x": np.ones((4, 3), np.float32)}]
    original = Model.load(onnx.parser.parse_model(FLOAT))
    same, other = (
        node_damage(original, Model.load(onnx.parser.parse_model(each)), samples)
        for each in (text, scaled)
    )
    assert {damage.name: damage.noise < 1e-3 for damage in same}["product"]
    assert {damage.name: damage.noise > 1e-2 for damage in other}["product"]


def test_conversions_that_stay_are_listed_with_the_reason() -> None:
    text = QDQ.replace("SCALE", "0.02").replace("<float s", "<float ms = {0.3}, float s")
    found = conversions(Model.load(onnx.parser.parse_model(text)), "cpu")
    assert {each.code for each in found} == {"CMP203"}
    assert any("input of the model" in each.message for each in found)
    assert conversions(Model.load(onnx.parser.parse_model(FLOAT)), "cpu") == []


@pytest.mark.slow
def test_pruning_and_quantizing_are_told_apart() -> None:
    result = small_run(max_drop=0.5, prune=True, trials=8)
    labels = [trial.label for trial in result.trials]
    pruned = next(trial for trial in result.trials if trial.label.endswith("% pruned"))
    assert pruned.base == "simplified"
    both = [label for label in labels if label.endswith("pruned, int8")]
    assert both
    by_label = {trial.label: trial for trial in result.trials}
    assert by_label[both[0]].base.endswith("% pruned")
    assert by_label[both[0]].model.nbytes < by_label[by_label[both[0]].base].model.nbytes
    steps = [found.step for found in result.report.contributions]
    assert steps[-1] == result.chosen.label
    assert len(result.trials) <= 8 + 3  # the original, the simplified one, and a repaired one
