"""The lossless passes in their best order, with the proof that nothing changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxcomp import recipe
from onnxcomp.errors import UserError
from onnxcomp.ir import Model
from onnxcomp.ir.lineage import same_lineage
from onnxcomp.passbase import QUIET
from onnxcomp.pipeline import Pipeline, Result

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    import numpy as np

    from onnxcomp.ir.model import Source
    from onnxcomp.passbase import Progress
    from onnxcomp.rules import Rule

    InputShapes: TypeAlias = Sequence[str] | Mapping[str, Sequence[int | str | None] | int]

# Identities go first, while the symbols of shapes are still in the graph; activations are recognised before
# their constants are folded into neighbours; dead code goes last in a round.
SIMPLIFY = (
    "eliminate-dead,"
    "fixpoint(eliminate-identity,fold-constants,inline-branches,share-common,"
    "merge-branches,simplify-loops,hoist-invariants,fuse-lstm,simplify-functions,simplify-sequences,lower-einsum,push-transposes,merge-views,merge-slices,"
    "fuse-activations,"
    "fuse-gates,fuse-softmax,fuse-shuffle,fuse-layernorm,fuse-attention,fuse-transpose,fuse-batchnorm,fuse-affine,fuse-bias,merge-arithmetic,fuse-pad,eliminate-dead),"
    # Gates are in their last form now. Nothing else gets shorter by it.
    "batch-gates"
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
    opset: int | None = None,
    inline_functions: bool = False,
    rules: Sequence[str | Path | Rule] = (),
    input_shapes: InputShapes = (),
    batch: int | None = None,
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
        opset: Convert the model to this version of ONNX's operators first, and keep it otherwise. Newer
            ones have operators that stand for many nodes: LayerNormalization (17), Gelu (20).
        inline_functions: Put local functions in the places of their calls first: passes then see through
            them, and the result is as flat as runtimes make it anyway.
        rules: Rewrites of your own (see `onnxcomp.patterns`) and Python files that define some; they are
            tried before the built-in ones and held to the same promise.
        input_shapes: Sizes for open dimensions of the inputs: `{"x": (1, 3, None, 224), "seq": 16}`, by
            input or by symbol, or the texts of the command line. The result takes these sizes only.
        batch: Size of the first dimension of every input where it is open.

    Returns:
        The simplified model and what each pass did.

    Raises:
        UserError: If the model cannot be read or is not valid.
    """
    pinned = pin_shapes(source, input_shapes, batch) if input_shapes or batch else None
    original = Model.load(source) if pinned is None else pinned.model
    # Numbers are compared at the end, of this step as well.
    first = "" if opset is None else f"convert-opset{{version={opset} verify=false}},"
    first += "inline-functions," if inline_functions else ""
    pipeline = Pipeline.parse(first + SIMPLIFY, target=target)
    if rules:
        pipeline = _with_rules(pipeline, rules)
    options: dict[str, Any] = {
        "threads": threads,
        "progress": progress,
        "on_failure": "skip",
        "reproducer": reproducer,
        "explain": explain,
    }
    if verify:
        from_file = pinned is None and isinstance(source, (str, Path))
        compared = _Compared(from_file=from_file, samples=samples, seed=seed)
        result = compared.run(pipeline, original, options)
    else:
        result = pipeline.run(original, **options)
    _refuse_conversion(result, opset)
    return result if pinned is None else _after(pinned, result)


@dataclass(frozen=True)
class _Compared:
    """A run whose result is compared with what came in.

    Attributes:
        from_file: Whether the model can be compared with the file that it came from.
        samples: What it is compared on; made up if there is nothing.
        seed: Seed of what is made up.
    """

    from_file: bool
    samples: Sequence[Mapping[str, np.ndarray]] | None
    seed: int

    def run(self, pipeline: Pipeline, original: Model, options: dict[str, Any]) -> Result:
        """Runs a pipeline; if the result differs, once more with every pass watched."""
        from onnxcomp.verify import LARGE_BYTES, Equivalence

        # Looked at in another thread; serialising a model touches it for a moment.
        twin = original.copy()
        reference = (twin.runnable_path if self.from_file else None) or twin
        equivalence = Equivalence(
            reference,
            signature_of=twin,
            feeds=self.samples,
            threads=options["threads"],
            seed=self.seed,
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


def _after(first: Result, second: Result) -> Result:
    """One result of two runs, one after the other."""
    return dataclasses.replace(
        second,
        outcomes=(*first.outcomes, *second.outcomes),
        pipeline=f"{first.pipeline},{second.pipeline}",
    )


def _refuse_conversion(result: Result, opset: int | None) -> None:
    """Raises an error when the model was not to be had in the opset that was asked for."""
    for outcome in result.outcomes if opset is not None else ():
        if outcome.rolled_back and outcome.step.startswith("convert-opset"):
            raise UserError(f"cannot convert to opset {opset}: {outcome.rolled_back}")


def pin_shapes(source: Source, shapes: InputShapes = (), batch: int | None = None) -> Result:
    """Fixes open dimensions of a model's inputs, see the pass of that name.

    Args:
        source: The model; never changed.
        shapes: Sizes by input or by symbol, or texts such as `x:1,3,224,224` and `seq=16`.
        batch: Size of the first dimension of every input where it is open.

    Raises:
        UserError: If the inputs cannot have these sizes.
    """
    if isinstance(shapes, Mapping):
        texts = [
            f"{name}={dims}"
            if isinstance(dims, int)
            else f"{name}:{','.join('?' if dim is None else str(dim) for dim in dims)}"
            for name, dims in shapes.items()
        ]
    else:
        texts = list(shapes)
    step = recipe.make("pin-shapes", {"shapes": texts, "batch": batch or 0})
    return Pipeline((step,)).run(source)


def _with_rules(pipeline: Pipeline, rules: Sequence[str | Path | Rule]) -> Pipeline:
    """Puts rules of the user's own at the head of what is repeated."""
    from onnxcomp.patterns.files import steps_of
    from onnxcomp.recipe import Fixpoint

    own = steps_of(rules)
    steps = (
        Fixpoint((*own, *step.steps), step.limit) if isinstance(step, Fixpoint) else step
        for step in pipeline.steps
    )
    return dataclasses.replace(pipeline, steps=tuple(steps))
