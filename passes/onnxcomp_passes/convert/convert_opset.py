"""Brings a model to another version of ONNX's operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import onnx
from onnx import defs
from typing_extensions import override

from onnxcomp.analysis.propagation import infer_shapes
from onnxcomp.analysis.shapes import Shapes
from onnxcomp.errors import ModelError, UserError, quoted
from onnxcomp.ir.envelope import TRAINING
from onnxcomp.ir.structure import check_structure
from onnxcomp.passbase import Pass
from onnxcomp.runtime import Session, newest_opset
from onnxcomp.verify import Equivalence, varies
from onnxcomp_passes.convert.opsets import Blocked, convert
from onnxcomp_passes.convert.up import REVIEWED

if TYPE_CHECKING:
    from onnxcomp.ir import Model
    from onnxcomp.passbase import Context


class ConvertOpset(Pass):
    """Bring the model to another opset, changing exactly the nodes whose operators changed.

    Names, metadata, functions, weights and external data stay as they are; bodies and local functions
    are converted too. What cannot be said in the other opset, or not in the same way, is refused with
    the node and the reason. The result is checked, its shapes are inferred, and it is compared with the
    original on made-up inputs.

    A newer opset has operators that other passes can use: LayerNormalization from 17 on, Gelu from 20.

        y = ReduceMean <axes = [1]> (x)        ->        y = ReduceMean (x, axes)        (13 to 18)
    """

    name: ClassVar[str] = "convert-opset"
    lossless: ClassVar[bool] = True
    codes: ClassVar[Mapping[str, str]] = {
        "OPS101": "A node cannot be brought to the newest opset without a change of meaning. The model got the "
        "newest one that it can have; ask for a version to make this an error.",
        "OPS102": "The model was left at its opset, for the reason given.",
        "OPS103": "The converted model could not be compared with the original by numbers. It was checked and "
        "its shapes were inferred.",
    }

    version: int = 0
    """Opset to convert to; 0 is the newest that onnx, the runtime and the model can take. With a number,
    what is in the way is an error."""
    verify: bool = True
    """Compare numbers with the original."""

    @override
    def run(self, ctx: Context) -> None:
        model = ctx.model
        if not model.opset:
            ctx.skip("OPS102", None, "it uses no operators of the standard")
            return
        if TRAINING in model.core.meta:
            self._refuse(ctx, [Blocked(None, "it carries training information")], model.opset)
            return
        if self.version:
            self._to(ctx, self.version)
        else:
            self._raise(ctx)

    def _to(self, ctx: Context, version: int) -> None:
        proof, before = _Proof(ctx, verify=self.verify), ctx.model.opset
        if blocked := convert(ctx.model, ctx.edit, ctx.facts.get(Shapes()), version):
            self._refuse(ctx, blocked, before)
        elif ctx.edit.changed:
            _set_format(ctx, version)
            if reason := proof.failure():
                raise UserError(f"cannot convert to opset {version}: {reason}")

    def _raise(self, ctx: Context) -> None:
        """Tries the newest opset, then the newest before the first obstacle."""
        version = min(newest_opset(), REVIEWED, defs.onnx_opset_version())
        proof = _Proof(ctx, verify=self.verify)
        while version > ctx.model.opset:
            mark = ctx.edit.mark()
            blocked = convert(ctx.model, ctx.edit, ctx.facts.get(Shapes()), version)
            first = min(blocked, key=lambda each: each.at) if blocked else None
            if first is None:
                _set_format(ctx, version)
                reason = proof.failure()
                if not reason:
                    return
                first = Blocked(None, reason, version)
            ctx.edit.rollback(mark)
            ctx.skip("OPS101", first.node, first.reason, f"opset {first.at} stays out of reach")
            version = first.at - 1

    def _refuse(self, ctx: Context, blocked: list[Blocked], before: int) -> None:
        first = blocked[0]
        if not self.version:
            ctx.skip("OPS102", first.node, first.reason)
            return
        more = f" (and {len(blocked) - 1} more)" if len(blocked) > 1 else ""
        place = "the model"
        if first.node is not None:
            name = first.node.name or (first.node.outputs[0].name if first.node.outputs else "")
            place = f"{first.node.op_type} {quoted(name)}"
        raise UserError(
            f"cannot convert from opset {before} to {self.version}: {place}: {first.reason}{more}",
            hint="the pass convert-opset without a version takes the newest one that is possible",
        )


class _Proof:
    """What has to hold of the converted model; made before the conversion, asked after it."""

    def __init__(self, ctx: Context, *, verify: bool) -> None:
        self._ctx = ctx
        self._is_compared = verify
        # Who compares later, and cannot because the model draws random numbers, does not load it either.
        self._original = ctx.model.copy() if verify or varies(ctx.model) else None
        self._is_sound = not _contradiction(ctx.model)

    def failure(self) -> str:
        """Returns what is wrong with the result: not valid, no consistent shapes, other numbers."""
        model, original = self._ctx.model, self._original
        try:
            check_structure(model.to_proto(weights=False))
        except ModelError as error:
            return f"the result would not be valid: {error.message}"
        if self._is_sound and (reason := _contradiction(model)):
            return f"the result would have no consistent shapes: {reason}"
        if original is None:
            return ""
        if self._is_compared:
            equivalence = Equivalence(original, signature_of=original, threads=self._ctx.threads)
            if reason := equivalence.difference(model):
                return f"the result would not compute the same: {reason}"
            if equivalence.note is None:
                return ""
            self._ctx.warn("OPS103", None, equivalence.note.message)
        reason = _not_loaded(model)
        return reason if reason and not _not_loaded(original) else ""


def _not_loaded(model: Model) -> str:
    try:
        Session.open(model, optimization="disable").close()
    except UserError as error:
        return error.message
    return ""


def _set_format(ctx: Context, version: int) -> None:
    """Raises the version of the file format to the first one that came with the opset.

    Not for files whose format wants every weight to be an input: a weight would become a default that
    callers may override.
    """
    if ctx.model.ir_version >= 4:
        for row in onnx.helper.VERSION_TABLE:
            if row[2] == version:
                ctx.edit.require_ir_version(row[1])
                break


def _contradiction(model: Model) -> str:
    """What strict shape inference finds wrong, empty when nothing."""
    try:
        infer_shapes(model.to_proto(weights=False), strict=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        return str(error).strip().splitlines()[0][:200]
    return ""
