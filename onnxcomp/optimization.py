"""The lossless passes in their best order, with the proof that nothing changed."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxcomp.ir import Model
from onnxcomp.ir.lineage import same_lineage
from onnxcomp.passbase import QUIET
from onnxcomp.pipeline import Pipeline, Result

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from onnxcomp.ir.model import Source
    from onnxcomp.passbase import Progress

# Identities go first, while the symbols of shapes are still in the graph; activations are recognised before
# their constants are folded into neighbours; dead code goes last in a round.
SIMPLIFY = (
    "eliminate-dead,"
    "fixpoint(eliminate-identity,fold-constants,inline-branches,share-common,push-transposes,"
    "fuse-activations,"
    "fuse-layernorm,fuse-batchnorm,fuse-affine,fuse-bias,fuse-pad,eliminate-dead)"
)


def optimize(  # noqa: PLR0913 - each is something that a user may want to say
    source: Source,
    *,
    target: str = "cpu",
    verify: bool = True,
    samples: Sequence[Mapping[str, np.ndarray]] | None = None,
    threads: int = 0,
    seed: int = 0,
    progress: Progress = QUIET,
    reproducer: str | Path | None = None,
    explain: bool = False,
) -> Result:
    """Simplifies a model without changing what it computes.

    Args:
        source: Path, `ModelProto`, `onnx_ir.Model`, GraphSurgeon graph or `Model`; never changed.
        target: Where the model will run.
        verify: Compare the result with the source on a few inputs; a pass that changed the function
            is taken back, and the report names it.
        samples: Inputs to compare on; made up from the declared shapes when not given.
        threads: Threads for the comparison, 0 for the runtime's choice.
        seed: Seed of inputs that are made up.
        progress: Progress bars.
        reproducer: Folder for the evidence if a pass fails.
        explain: Record which nodes became what, for `Result.explanation`.

    Returns:
        The simplified model and what each pass did.

    Raises:
        UserError: If the model cannot be read or is not valid.
    """
    original = Model.load(source)
    pipeline = Pipeline.parse(SIMPLIFY, target=target)
    options: dict[str, Any] = {
        "threads": threads,
        "progress": progress,
        "on_failure": "skip",
        "reproducer": reproducer,
        "explain": explain,
    }
    if not verify:
        return pipeline.run(original, **options)
    from onnxcomp.verify import LARGE_BYTES, Equivalence

    twin = (
        original.copy()
    )  # looked at in another thread; serialising a model touches it for a moment
    reference = Path(source) if isinstance(source, (str, Path)) else twin
    equivalence = Equivalence(
        reference, signature_of=twin, feeds=samples, threads=threads, seed=seed
    )
    with ThreadPoolExecutor(1) as ahead:
        if original.nbytes <= LARGE_BYTES:
            ahead.submit(equivalence.prepare)  # the runtime works while the passes do
        result = pipeline.run(original, **options)
    if not result.changed or same_lineage(original, result.model):
        return result
    if equivalence.difference(result.model):
        watched = dataclasses.replace(pipeline, instruments=(equivalence,))
        result = watched.run(original, **options)
    notes = (equivalence.note,) if equivalence.note else ()
    return dataclasses.replace(result, notes=(*result.notes, *notes))
