"""Whether a rewritten model computes what the drawn one does, and what it means when it does not."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxcomp.errors import PassFailedError, UserError
from onnxcomp.ir.fragile import make_inferable
from onnxcomp.pipeline import Pipeline
from tests.helpers.drawn.core import RUNTIME_ERRORS, open_session
from tests.helpers.noise import element_types, is_as_far, is_unstable, overflows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxcomp.ir import Model
    from onnxcomp.passbase import Outcome, Pass

Outputs = list[Any]
References = dict[str, tuple[dict[str, np.ndarray], Outputs]]
# From good to bad; the last four count as failures.
OUTCOMES = (
    "unchanged", "exact", "close", "unstable", "not finite", "overflow", "ill-conditioned",
    "not settled", "refused", "invalid", "wrong", "traceback",
)  # fmt: skip
BAD = frozenset({"refused", "invalid", "wrong", "traceback"})


@dataclass(frozen=True)
class Verdict:
    """What came of one recipe on one model."""

    outcome: str
    detail: str = ""
    variant: str = ""
    guilty: str = ""


def references(proto: onnx.ModelProto, feeds: Mapping[str, dict[str, np.ndarray]]) -> References:
    """Runs the original on every variant that it takes."""
    session = open_session(proto)
    found: References = {}
    for variant, arrays in feeds.items():
        try:
            found[variant] = (arrays, session.run(None, arrays))
        except RUNTIME_ERRORS:
            continue
    return found


def judge(
    proto: onnx.ModelProto, recipe: str, known: References, *, exact: bool = False
) -> Verdict:
    """Runs a recipe on a model and compares."""
    try:
        result = Pipeline.parse(recipe).run(proto)
        got = result.model.to_proto()
    except PassFailedError as error:
        return Verdict("traceback", _line(error), guilty=_pass_of(error))
    except UserError as error:
        return Verdict("refused", _line(error))
    except Exception:  # noqa: BLE001  (what this counts)
        return Verdict("traceback", _line(traceback.format_exc()[-400:]))
    if not result.changed:
        return Verdict("unchanged")
    if problem := _invalid(proto, got):
        return Verdict("invalid", problem)
    return compared(proto, got, recipe, known, exact=exact)


def compared(
    proto: onnx.ModelProto,
    got: onnx.ModelProto,
    recipe: str,
    known: References,
    *,
    exact: bool = False,
) -> Verdict:
    """Compares the results of two models on every variant."""
    try:
        session = open_session(got)
    except RUNTIME_ERRORS as error:
        return Verdict(
            "wrong", f"no longer loads: {_line(error)}", guilty=guilty(proto, recipe, known)
        )
    worst = Verdict("exact")
    half = onnx.TensorProto.FLOAT16 in element_types(proto)
    for variant, (feeds, expected) in known.items():
        try:
            outputs = session.run(None, feeds)
        except RUNTIME_ERRORS as error:
            name = guilty(proto, recipe, {variant: known[variant]})
            return Verdict("wrong", f"no longer runs: {_line(error)}", variant, name)
        outcome, detail = difference(expected, outputs, variant, exact=exact, half=half)
        if outcome in {"wrong", "overflow", "not finite"} and is_unstable(proto, feeds):
            outcome = "unstable"
        elif outcome == "wrong" and variant == "not finite":
            outcome = "not finite"
        elif outcome == "wrong" and variant == "large" and overflows(proto, got, feeds):
            outcome = "overflow"
        elif outcome == "wrong" and is_as_far(proto, feeds, expected, outputs):
            outcome = "ill-conditioned"
        if OUTCOMES.index(outcome) > OUTCOMES.index(worst.outcome):
            name = (
                guilty(proto, recipe, {variant: known[variant]})
                if outcome not in {"close", "exact"}
                else ""
            )
            worst = Verdict(outcome, detail, variant, name)
    return worst


def _pass_of(error: Exception) -> str:
    words = str(error).split()
    return words[words.index("pass") + 1] if "pass" in words[:-1] else ""


def _line(error: object) -> str:
    return " ".join(str(error).split())[-300:]


def _invalid(before: onnx.ModelProto, after: onnx.ModelProto) -> str:
    """What the checker says about the result, as far as it accepts the original."""
    before, after = (onnx.ModelProto.FromString(m.SerializeToString()) for m in (before, after))
    survives = make_inferable(before) and make_inferable(after)
    for full in (True, False) if survives else (False,):
        try:
            onnx.checker.check_model(before, full_check=full)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
            continue
        try:
            onnx.checker.check_model(after, full_check=full)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            return _line(error)
        break
    if [_signature(v) for v in before.graph.input] != [_signature(v) for v in after.graph.input]:
        return "the inputs are others"
    if [v.name for v in before.graph.output] != [v.name for v in after.graph.output]:
        return "the outputs are others"
    return ""


def _signature(info: onnx.ValueInfoProto) -> tuple[str, bytes]:
    return info.name, info.type.SerializeToString(deterministic=True)


def difference(
    expected: Outputs, got: Outputs, variant: str, *, exact: bool = False, half: bool = False
) -> tuple[str, str]:
    """Returns the worst outcome over all outputs, and what it is."""
    worst, why = "exact", ""
    for index, (one, two) in enumerate(zip(expected, got, strict=True)):
        a, b = np.asarray(one), np.asarray(two)
        outcome, detail = _difference(a, b, variant, exact=exact, half=half)
        if OUTCOMES.index(outcome) > OUTCOMES.index(worst):
            worst, why = outcome, f"output {index}: {detail}"
    return worst, why


def _difference(
    one: np.ndarray, two: np.ndarray, variant: str, *, exact: bool, half: bool
) -> tuple[str, str]:
    # Between nodes the runtime keeps float16 as float32 where it has no kernel, as it sees fit.
    if (one.dtype, one.shape) != (two.dtype, two.shape):
        return "wrong", f"{one.dtype}{list(one.shape)} became {two.dtype}{list(two.shape)}"
    if one.dtype.kind not in "fc":
        unequal = int((one != two).sum())
        return ("wrong", f"{unequal} of {one.size} differ") if unequal else ("exact", "")
    equal = (one == two) | (np.isnan(one) & np.isnan(two))
    if equal.all():
        return "exact", ""
    finite = np.isfinite(one) & np.isfinite(two)
    if not (equal | finite).all():
        names = {"not finite": "not finite", "large": "overflow"}
        place = int((~(equal | finite)).argmax())
        text = f"{one.flat[place]!r} became {two.flat[place]!r}"
        return names.get(variant, "wrong") if not exact else "wrong", text
    a, b = one[finite].astype(np.float64), two[finite].astype(np.float64)
    rtol, of_peak, tiny = (5e-3, 2e-3, 1e-6) if half else (1e-4, 2e-5, 1e-37)
    error = np.abs(a - b)
    limit = tiny + rtol * np.abs(a) + of_peak * float(np.abs(a).max(initial=0))
    if not exact and (error <= limit).all():
        return "close", ""
    place = int((error - limit).argmax())
    return "wrong", f"{a[place]!r} became {b[place]!r}"


class _Watch:
    """Notes which pass changed the numbers."""

    def __init__(self, known: References, *, half: bool) -> None:
        self.known, self.half = known, half
        self.previous = {variant: outputs for variant, (_, outputs) in known.items()}
        self.found = ""

    def before(self, step: Pass, model: Model) -> None:
        """Nothing to do."""

    def after(self, step: Pass, model: Model, outcome: Outcome) -> str:
        del outcome
        if self.found:
            return ""
        try:
            session = open_session(model.to_proto())
            for variant, (feeds, _) in self.known.items():
                got = session.run(None, feeds)
                if difference(self.previous[variant], got, variant, half=self.half)[0] not in {
                    "exact",
                    "close",
                }:
                    self.found = step.name
                self.previous[variant] = got
        except RUNTIME_ERRORS:
            self.found = step.name
        return ""


def guilty(proto: onnx.ModelProto, recipe: str, known: References) -> str:
    """Returns the name of the first pass after which the numbers are others."""
    watch = _Watch(known, half=onnx.TensorProto.FLOAT16 in element_types(proto))
    pipeline = Pipeline(Pipeline.parse(recipe).steps, instruments=(watch,))
    pipeline.run(proto)
    return watch.found or "many small steps"


def settles(proto: onnx.ModelProto, recipe: str) -> bool:
    """Whether a second run finds nothing left to do."""
    pipeline = Pipeline.parse(recipe)
    once = pipeline.run(proto)
    return not pipeline.run(once.model.to_proto()).changed


def worst_of(verdicts: Sequence[Verdict]) -> Verdict:
    """The one that is furthest from good."""
    return max(verdicts, key=lambda verdict: OUTCOMES.index(verdict.outcome))
