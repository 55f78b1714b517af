"""Whether a rewritten model still computes what the one that came in did."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.analysis.cost import flops
from onnxcomp.analysis.facts import Facts
from onnxcomp.analysis.shapes import Shapes
from onnxcomp.compare import Comparer, Tolerance
from onnxcomp.diagnostics import Diagnostic, Location, Severity
from onnxcomp.errors import (
    ModelError,
    RuntimeUnavailableError,
    SamplesError,
    TimeLimitError,
    UserError,
)
from onnxcomp.ir.ops import NONDETERMINISTIC, STANDARD_DOMAINS, array, bit_width, is_op, is_training
from onnxcomp.probe import probe_feeds
from onnxcomp.runtime import Session
from onnxcomp.stages import stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any, TypeAlias

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Model
    from onnxcomp.passbase import Outcome, Pass

    Pair: TypeAlias = tuple[Mapping[str, np.ndarray], Mapping[str, Any]]

# Folding a batch normalisation or merging scales adds up in another order: off by some units in the
# last place of the largest term, which deep networks carry on.
LOSSLESS = Tolerance(rtol=1e-3, atol=1e-6, of_peak=1e-4)
PROBES = 2
# A model that takes longer for a sample is compared on one.
SLOW_SECONDS = 0.03
# One that takes less is compared on one more, with large numbers.
QUICK_SECONDS = 0.003
# Samples that are tried when none of the first ones says anything.
MORE_PROBES = 4
# A model that makes a larger value is not run: it may have been made to fill the memory.
MAX_VALUE_BYTES = 1 << 30
# One that takes more operations, as far as shapes tell, is not run; a run that takes longer is stopped.
MAX_OPERATIONS = 5_000_000_000_000
MAX_SECONDS = 60.0
_HEAVY = frozenset(
    ("Conv", "ConvTranspose", "ConvInteger", "Einsum", "Gemm", "MatMul", "MatMulInteger")
)
# Above this, copies of weights cost more than reading them slowly.
LARGE_BYTES = 512 << 20
# Without prepacking the runtime reads weights where they are mapped and makes no copies of them: a
# third less memory, and no slower for two runs. Some of its own operators know no other way.
_MAPPED = {"session.disable_prepacking": "1"}


class Equivalence:
    """Compares rewritten models with the original on the same inputs, the runtime's own rewrites off.

    The inputs are seeded random ones that fit the declared shapes, or real samples where given. As an
    instrument of a pipeline it is asked after every lossless pass and so finds the guilty one.

    Args:
        original: The model that came in.
        feeds: Samples to compare on; made up when none are given.
        threads: Threads of a session.
        seed: Seed of the made-up inputs.
    """

    def __init__(
        self,
        original: Model | Path,
        *,
        signature_of: Model,
        feeds: Sequence[Mapping[str, np.ndarray]] | None = None,
        threads: int = 0,
        seed: int = 0,
    ) -> None:
        self._original = original
        self._signature_of = signature_of
        self._feeds = feeds
        self._threads = threads
        self._seed = seed
        self._reference: list[Pair] | None = None
        self._steady = False
        self.note: Diagnostic | None = None

    def difference(self, model: Model | Path) -> str:
        """Returns how a model differs from the original, empty when it does not or cannot be told.

        Why it cannot be told is in `note` then.
        """
        with stage("comparing numbers"):
            reference = self.prepare()
            reason = self._compare(model, reference) if reference else ""
            if reason and not self._steady and self._only_steady():
                reason = self._compare(model, self._reference or [])
            return reason

    def _compare(self, model: Model | Path, reference: Sequence[Pair]) -> str:
        comparer = Comparer(LOSSLESS)
        try:
            with self._open(model) as session:
                for feeds, outputs in reference:
                    # It may be slower, but not by that much.
                    comparer.add(outputs, session.run(feeds, limit_seconds=4 * MAX_SECONDS))
        except (RuntimeUnavailableError, ModelError, SamplesError, TimeLimitError) as error:
            return f"onnxruntime runs the original but not the result: {error.message}"
        return comparer.result().reason

    def _only_steady(self) -> bool:
        """Drops samples on which the original itself does not keep its outputs within the tolerance.

        A network fed with huge numbers can be so ill-conditioned that a change in the last place of an
        input changes an output visibly; any order of summation is as right as another there.

        Returns:
            Whether some sample was dropped, so that a comparison has to be made again.
        """
        self._steady = True
        before = self._reference or []
        with self._open(self._original) as session:
            kept = [pair for pair in before if _is_steady(session, pair, self._seed)]
            for seed in range(self._seed + 1, self._seed + 1 + MORE_PROBES) if not kept else ():
                feeds = self._probes(_Remembering(session), seed)[0]
                pair = (feeds, session.run(feeds))
                if _is_steady(session, pair, seed):
                    kept.append(pair)
                    break
        if not kept:
            self.note = _note("CMP105", "tiny changes of the inputs change the outputs visibly")
        self._reference = kept
        return len(kept) < len(before) or not kept

    def before(self, step: Pass, model: Model) -> None:
        """Nothing to do: the original is the reference for every pass."""

    def after(self, step: Pass, model: Model, outcome: Outcome) -> str:
        """Objects to a lossless pass that changed what the model computes."""
        del outcome
        return self.difference(model) if step.lossless else ""

    def _open(self, model: Model | Path) -> Session:
        standard = STANDARD_DOMAINS.issuperset(self._signature_of.opset_imports)
        large = self._signature_of.nbytes > LARGE_BYTES
        config = _MAPPED if standard or large else None
        return Session.open(
            model, threads=self._threads, optimization="disable", config=config, arena=False
        )

    def prepare(self) -> Sequence[Pair] | None:
        """Runs the original, once; can be done ahead of time in a thread of its own.

        Returns:
            Samples and what the original makes of them, None when that is not possible.
        """
        if self._reference is None and self.note is None:
            self.note = self._prepare()
        return self._reference

    def _prepare(self) -> Diagnostic | None:
        """Runs the original on inputs that it takes; returns why that is not possible."""
        if varies(self._signature_of):
            return _note("CMP103", "it draws random numbers")
        shapes = Facts(self._signature_of).get(Shapes())
        if (size := _largest(self._signature_of, shapes)) > MAX_VALUE_BYTES:
            return _note("CMP104", f"one of its values takes {size:,} bytes")
        if (operations := _operations(self._signature_of, shapes)) > MAX_OPERATIONS:
            return _note("CMP107", f"it takes {operations:,} operations")
        if _may_trap(self._signature_of):
            return _note("CMP106", "it divides integers by 0 or -1")
        try:
            session = self._open(self._original)
        except (RuntimeUnavailableError, ModelError) as error:
            return _note("CMP101", error.message)
        with session:
            runner = _Remembering(session)
            try:
                feeds = self._feeds or self._probes(runner, self._seed)
                self._reference = [(feed, runner.run(feed)) for feed in feeds]
            except TimeLimitError as error:
                return _note("CMP107", error.message)
            except UserError as error:
                return _note("CMP102", error.message)
        return None

    def _probes(self, runner: _Remembering, seed: int) -> list[dict[str, np.ndarray]]:
        def enough(accepted: list[dict[str, np.ndarray]]) -> bool:
            return runner.seconds > (SLOW_SECONDS if len(accepted) < PROBES else QUICK_SECONDS)

        return probe_feeds(
            self._signature_of.signature(),
            count=PROBES + 1,
            seed=seed,
            runner=runner,
            vary_sizes=True,
            enough=enough,
        )


def _is_steady(session: Session, pair: Pair, seed: int) -> bool:
    """Whether the original's outputs stay within the tolerance when inputs change in the last place."""
    rng = np.random.default_rng(seed)
    comparer = Comparer(LOSSLESS)
    feeds, outputs = pair
    comparer.add(outputs, session.run({name: _nudged(array, rng) for name, array in feeds.items()}))
    return bool(comparer.result())


def _nudged(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    to = np.where(rng.random(array.shape) < 0.5, -np.inf, np.inf).astype(array.dtype)
    nudged = np.nextafter(array, to)
    return np.where(np.isfinite(nudged), nudged, array)


class _Remembering:
    """A session that gives the answer again for feeds that it has seen."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known: dict[int, Pair] = {}
        self.seconds = 0.0

    def run(self, feeds: Mapping[str, np.ndarray], /) -> Mapping[str, Any]:
        """Runs the model, unless these very feeds were run before."""
        known = self._known.get(id(feeds))
        if known is None or known[0] is not feeds:
            start = time.perf_counter()
            outputs = self._session.run(feeds, limit_seconds=MAX_SECONDS)
            known = self._known[id(feeds)] = (feeds, outputs)
            self.seconds = time.perf_counter() - start
        return known[1]


def varies(model: Model) -> bool:
    """Whether two runs of a model on the same inputs may differ."""
    return any(
        node.op_type in NONDETERMINISTIC or (node.op_type == "Dropout" and is_training(node))
        for node in model.nodes()
    )


def _may_trap(model: Model) -> bool:
    """Whether onnxruntime could die on an integer division: INT_MIN / -1 is SIGFPE up to 1.31 at least."""
    for node in model.nodes():
        if is_op(node, "Div", "Mod"):
            divisor = array(node.inputs[1], limit=1 << 16)
            if (
                divisor is not None
                and divisor.dtype.kind in "iu"
                and np.isin(divisor, (0, -1)).any()
            ):
                return True
    return False


def _largest(model: Model, shapes: ShapeMap) -> int:
    """Returns the bytes of the largest value whose size is known."""
    return max(
        (
            (shapes.size(value) or 0) * bit_width(shapes.dtype(value)) // 8
            for node in model.nodes()
            for value in node.outputs
        ),
        default=0,
    )


def _operations(model: Model, shapes: ShapeMap) -> int:
    """Returns the arithmetic of the products and convolutions whose sizes are known."""
    heavy = [node for node in model.nodes() if node.op_type in _HEAVY]
    return sum(flops(node, shapes) or 0 for node in heavy)


def _note(code: str, why: str) -> Diagnostic:
    return Diagnostic(
        code, Severity.WARNING, f"numbers were not compared: {why}", Location("model")
    )
