"""Whether a rewritten model still computes what the one that came in did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.compare import Comparer, Tolerance
from onnxcomp.diagnostics import Diagnostic, Location, Severity
from onnxcomp.errors import ModelError, RuntimeUnavailableError, SamplesError, UserError
from onnxcomp.ir.ops import NONDETERMINISTIC, is_training
from onnxcomp.probe import probe_feeds
from onnxcomp.runtime import Session
from onnxcomp.stages import stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any, TypeAlias

    import numpy as np

    from onnxcomp.ir import Model
    from onnxcomp.passbase import Outcome, Pass

    Pair: TypeAlias = tuple[Mapping[str, np.ndarray], Mapping[str, Any]]

# Folding a batch normalisation or merging scales adds up in another order: off by some units in the
# last place of the largest term, which deep networks carry on.
LOSSLESS = Tolerance(rtol=1e-3, atol=1e-6, of_peak=1e-4)
PROBES = 2
# Of a model with more weights than this, one sample is enough: each run reads all of them.
LARGE_BYTES = 512 << 20
# Without prepacking the runtime reads weights where they are mapped and makes no copies of them.
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
        self.note: Diagnostic | None = None

    def difference(self, model: Model | Path) -> str:
        """Returns how a model differs from the original, empty when it does not or cannot be told.

        Why it cannot be told is in `note` then.
        """
        with stage("comparing numbers"):
            reference = self._prepared()
            if reference is None:
                return ""
            comparer = Comparer(LOSSLESS)
            try:
                with self._open(model) as session:
                    for feeds, outputs in reference:
                        comparer.add(outputs, session.run(feeds))
            except (RuntimeUnavailableError, ModelError, SamplesError) as error:
                return f"onnxruntime runs the original but not the result: {error.message}"
            return comparer.result().reason

    def before(self, step: Pass, model: Model) -> None:
        """Nothing to do: the original is the reference for every pass."""

    def after(self, step: Pass, model: Model, outcome: Outcome) -> str:
        """Objects to a lossless pass that changed what the model computes."""
        del outcome
        return self.difference(model) if step.lossless else ""

    def _open(self, model: Model | Path) -> Session:
        return Session.open(model, threads=self._threads, optimization="disable", config=_MAPPED)

    def _prepared(self) -> list[Pair] | None:
        if self._reference is None and self.note is None:
            self.note = self._prepare()
        return self._reference

    def _prepare(self) -> Diagnostic | None:
        """Runs the original on inputs that it takes; returns why that is not possible."""
        if varies(self._signature_of):
            return _note("CMP103", "it draws random numbers")
        try:
            session = self._open(self._original)
        except (RuntimeUnavailableError, ModelError) as error:
            return _note("CMP101", error.message)
        with session:
            runner = _Remembering(session)
            try:
                feeds = self._feeds or self._probes(runner)
                self._reference = [(feed, runner.run(feed)) for feed in feeds]
            except UserError as error:
                return _note("CMP102", error.message)
        return None

    def _probes(self, runner: _Remembering) -> list[dict[str, np.ndarray]]:
        is_large = self._signature_of.nbytes > LARGE_BYTES
        signature = self._signature_of.signature()
        count = 1 if is_large else PROBES
        return probe_feeds(signature, count=count, seed=self._seed, runner=runner)


class _Remembering:
    """A session that gives the answer again for feeds that it has seen."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known: dict[int, Pair] = {}

    def run(self, feeds: Mapping[str, np.ndarray], /) -> Mapping[str, Any]:
        """Runs the model, unless these very feeds were run before."""
        known = self._known.get(id(feeds))
        if known is None or known[0] is not feeds:
            known = self._known[id(feeds)] = (feeds, self._session.run(feeds))
        return known[1]


def varies(model: Model) -> bool:
    """Whether two runs of a model on the same inputs may differ."""
    return any(
        node.op_type in NONDETERMINISTIC or (node.op_type == "Dropout" and is_training(node))
        for node in model.nodes()
    )


def _note(code: str, why: str) -> Diagnostic:
    return Diagnostic(
        code, Severity.WARNING, f"numbers were not compared: {why}", Location("model")
    )
