"""Weight-only quantization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, field_validator
from typing_extensions import override

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.passbase import Context, Pass
from onnxcomp.runtime import available_providers, newest_opset
from onnxcomp_passes.convert.opsets import convert
from onnxcomp_passes.quantize.weight_forms import Writer
from onnxcomp_passes.quantize.weight_methods import fit_site, grams_of, round_site
from onnxcomp_passes.quantize.weight_plans import (
    KERNEL_BLOCKS,
    Format,
    Plan,
    Wishes,
    is_miscomputed,
)
from onnxcomp_passes.quantize.weight_rows import rows_of
from onnxcomp_passes.quantize.weight_scaling import scale_plans
from onnxcomp_passes.quantize.weight_sites import Site, chosen, find_sites
from onnxcomp_passes.quantize.weight_writing import Weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxcomp_passes.quantize.weight_methods import DataFree
    from onnxcomp_passes.quantize.weight_packing import Stored

_BITS = (2, 3, 4, 8)
# Above this size the model is not loaded to see what the provider makes of it.
_CHECKED_BYTES = 1 << 30
_GRAM_BYTES = 1 << 30
# A weight in its new form has to be smaller than this share of what it was.
_WORTH, _WORTH_COPIES = 0.85, 0.5
_WITH_GPTQ, _WITH_SCALES = ("auto", "gptq", "awq-gptq"), ("awq", "awq-gptq")
_IR_OF_OPSET = {21: 10, 25: 13}


class QuantizeWeights(Pass):
    """Stores weights in 2 to 8 bits; activations stay float.

    Matrices of MatMul and Gemm become numbers with a scale (and zero point) for each block of rows, behind
    a DequantizeLinear. onnxruntime makes one kernel of that, MatMulNBits, which reads the numbers as they
    are: a matrix in 4 bits takes a sixth of the bytes, on disk and in memory, and where few rows are
    multiplied at a time (a decoder, one sample) the product takes a quarter of the time. With many rows
    it takes longer than float, so where that is known (from shapes, or from samples) the numbers are
    unpacked once, when the model is loaded: plain operators on constants, small in the file, in memory and
    in speed like float. Weights for which there is no such kernel (Conv, and LSTM on demand) are always stored like that.
    Of an embedding table only the rows that are picked are computed.

        y = MatMul (x, w)     ->     y = MatMul (x, DequantizeLinear <axis = 0, block_size = 32> (q, s, z))
        y = Conv (x, w)       ->     y = Conv (x, Mul (Cast (q), s))
        y = Gather (w, i)     ->     y = Mul (Cast (Gather (q, i)), Gather (s, i))

    Numbers come from rounding to nearest, from scales with the smallest squared error, from half-quadratic
    splitting (HQQ), or, with samples, from GPTQ (Frantar et al. 2022), which is kept for a layer only where
    it is nearer to float than rounding on samples that it has not seen. AWQ (Lin et al. 2023) moves range
    from activations into weights first, where a norm or a layer in front can take it.

    The kernel computes with activations in 8 bits; the session option
    `session.qdq_matmulnbits_accuracy_level=1` makes it compute in float, more slowly. 3 bits, for which
    ONNX has no type, are stored as three planes and always unpacked.
    """

    name: ClassVar[str] = "quantize-weights"
    codes: ClassVar[Mapping[str, str]] = {
        "WQT101": "The weight was left in float, for the reason given.",
        "WQT102": "What was asked for needs a newer opset than the model can have, so that 8 bits were used "
        "instead. Export the model with opset 21 or later, or use format=matmulnbits.",
        "WQT103": "The provider does not make one kernel of DequantizeLinear and MatMul here, or a wrong "
        "one, so the weight is unpacked when the model is loaded.",
        "WQT104": "Many rows are multiplied with these weights at a time, where the kernel on packed "
        "weights is slower than float; they are unpacked when the model is loaded. format=qdq keeps them "
        "packed for the sake of memory, block=128 is faster.",
        "WQT105": "GPTQ was not nearer to float on held-out samples for this layer, so another method was "
        "kept.",
        "WQT106": "How many rows are multiplied at a time is not known. The packed form is fast for few "
        "rows and slower than float for many. Give samples, or choose a format.",
        "WQT107": "What the provider makes of the model was not looked at.",
        "WQT108": "What was stored, and how.",
        "WQT110": "AWQ: activations whose channels were divided, and their weights multiplied, because that "
        "made rounding cost less on held-out samples.",
        "WQT111": "The method needs samples, and there are none, so that scales of least squares were used.",
        "WQT109": "Weights in local functions stay float; the pass inline-functions brings them out.",
    }

    bits: int = 4
    """Bits of the matrices of MatMul and Gemm: 2, 3, 4 or 8."""
    stored_bits: int = 8
    """Bits of weights that no kernel reads packed (Conv and others): 2, 3, 4 or 8."""
    table_bits: int = 8
    """Bits of embedding tables: 4 or 8."""
    block: NonNegativeInt | None = None
    """Rows that share a scale: 16, 32, 64, 128 or 256, 0 for all; by default 32, for 8 bits 128."""
    symmetric: bool = False
    """No zero points: 0.004 of the bytes less, and less precise. 8 bits never have them."""
    method: Literal["auto", "rtn", "mse", "hqq", "gptq", "awq", "awq-gptq"] = "auto"
    """How numbers are found; `auto` is gptq with samples and mse without."""
    format: Format = "auto"
    """How matrices are written: qdq (packed, standard ONNX), unpacked (when the model is loaded),
    matmulnbits (packed, onnxruntime's own operator, any opset); auto is qdq, or unpacked for many rows."""
    operators: tuple[str, ...] = ("MatMul", "Gemm", "Gather", "Conv", "ConvTranspose")
    """Operators whose weights are stored; LSTM, GRU and any other may be added."""
    bits_of: Mapping[str, int] = Field(default_factory=dict)
    """Bits for weights, or for nodes that read them, by pattern of their names; 0 is float."""
    skip: tuple[str, ...] = ()
    """Patterns for names of weights, of nodes or of their outputs to leave in float."""
    only: tuple[str, ...] = ()
    """Patterns for names of weights, of nodes or of their outputs; all others stay float."""
    smallest: PositiveInt = 4096
    """Elements below which a weight stays float."""
    accuracy_level: Annotated[int, Field(ge=0, le=4)] = 4
    """For format=matmulnbits: 4 computes with activations in 8 bits, 1 in float."""

    @field_validator("bits", "stored_bits")
    @classmethod
    def _known_bits(cls, bits: int) -> int:
        if bits not in _BITS:
            raise ValueError("must be 2, 3, 4 or 8")
        return bits

    @field_validator("table_bits")
    @classmethod
    def _known_table_bits(cls, bits: int) -> int:
        if bits not in (4, 8):
            raise ValueError("must be 4 or 8")
        return bits

    @field_validator("bits_of")
    @classmethod
    def _known_bits_of(cls, found: Mapping[str, int]) -> Mapping[str, int]:
        if any(bits not in (0, *_BITS) for bits in found.values()):
            raise ValueError("must be 0, 2, 3, 4 or 8")
        return found

    @field_validator("block")
    @classmethod
    def _known_block(cls, block: int | None) -> int | None:
        if block is not None and block not in (0, *KERNEL_BLOCKS):
            raise ValueError("must be 0, 16, 32, 64, 128 or 256")
        return block

    @override
    def run(self, ctx: Context) -> None:
        sites = self._sites(ctx)
        if not sites:
            return
        before = sum(int(site.tensor.nbytes) for site in sites)
        plans = self._plans(ctx, sites)
        plans = _in_reach(ctx, plans)
        if not plans:
            return
        if ctx.samples is None and self.method in ("gptq", "awq", "awq-gptq"):
            ctx.warn("WQT111", None, f"{self.method} needs samples: give --data (samples=)")
        if self.method in _WITH_SCALES and ctx.samples is not None:
            plans = scale_plans(ctx, plans, _GRAM_BYTES)
        checks = self._checks(ctx, plans)
        kept = Weights(ctx, Writer(ctx.edit, self.accuracy_level), memory=checks)
        for plan, stored, table in self._numbers(ctx, plans):
            kept.write(plan, stored, table)
        if checks:
            kept.check()
            plans = [plan for plan in plans if plan.site not in kept.left]
        after = before - sum(int(plan.site.tensor.nbytes) for plan in plans)
        self._summarise(ctx, plans, before, after + sum(plan.nbytes for plan in plans))

    # -- choosing ------------------------------------------------------------------------------------

    def _sites(self, ctx: Context) -> list[Site]:
        if ctx.model.ir_version < 4:
            ctx.skip("WQT101", None, "in files of this version every weight is an input")
            return []
        if any(len(function.graph) for function in ctx.model.core.functions.values()):
            ctx.skip("WQT109", None, "weights in local functions stay float")
        found, refused = find_sites(ctx.model, self.operators, self.smallest)
        for value in refused:
            ctx.skip("WQT101", value, "an operator that is not asked for reads it too")
        wanted = [s for s in found if not (self.only and not chosen(s, self.only))]
        return [site for site in wanted if not chosen(site, self.skip) and _is_finite(ctx, site)]

    def _plans(self, ctx: Context, sites: list[Site]) -> list[Plan]:
        wishes = Wishes(
            self.bits,
            self.stored_bits,
            self.table_bits,
            self.block,
            self.symmetric,
            self.format,
            self.bits_of,
        )
        shapes = ctx.facts.get(Shapes())
        matrices = [site for site in sites if site.is_matrix or site.is_tied]
        rows = rows_of(ctx, shapes, matrices) if self.format == "auto" else {}
        plans = []
        for site in sites:
            ranked = all(
                shapes.rank(use.node.inputs[1]) is not None
                for use in site.uses
                if use.kind == "table"
            )
            plan = wishes.plan(site, rows.get(site.name, 0), ranked=ranked)
            if plan is not None and plan.form != "unpacked" and _is_large(plan):
                plan = replace(wishes, format="unpacked").plan(site, plan.rows, ranked=ranked)
            if plan is None:
                continue
            wanted = site in matrices and self.format in ("auto", "qdq")
            if wanted and plan.form == "unpacked" and is_miscomputed(site, plan.scheme.bits):
                ctx.skip("WQT103", site.value, "2 bits and columns that do not fill bytes")
            if _is_large(plan):
                ctx.skip("WQT101", site.value, "it would not get smaller")
                continue
            plans.append(plan)
        self._advise(ctx, plans)
        return plans

    def _advise(self, ctx: Context, plans: list[Plan]) -> None:
        matrices = [plan for plan in plans if plan.site.is_matrix or plan.site.is_tied]
        many = [plan for plan in matrices if plan.form == "unpacked" and plan.scheme.bits != 3]
        if self.format == "auto" and many:
            rows = max(plan.rows for plan in many)
            ctx.note("WQT104", None, f"{len(many)} matrices multiply up to {rows} rows at a time")
        unknown = sum(
            1 for p in matrices if p.form == "packed" and not p.rows and p.scheme.bits < 8
        )
        if self.format == "auto" and unknown:
            ctx.note("WQT106", None, f"{unknown} matrices multiply an unknown number of rows")

    # -- numbers -------------------------------------------------------------------------------------

    def _numbers(
        self, ctx: Context, plans: list[Plan]
    ) -> Iterator[tuple[Plan, Stored, Stored | None]]:
        """Yields numbers of weights, one weight after the other."""
        fitted = {}
        if ctx.samples is not None and self.method in _WITH_GPTQ:
            fitted = {p.site: p for p in plans if self._is_fitted(p) and not p.site.is_table}
        # What is collected is that of the float model, while this one is changed.
        model = ctx.model.copy() if fitted else ctx.model
        method = self._data_free
        for site, fit, judge in grams_of(ctx, model, list(fitted), _GRAM_BYTES) if fitted else ():
            plan = fitted.pop(site)
            judged = fit_site(site, plan.scheme, fit, judge)
            if not judged.method.startswith("gptq"):
                ctx.note("WQT105", site.value, f"{judged.method} was kept")
            yield plan, judged.stored, _table_of(plan, method)
            plans = [each for each in plans if each is not plan]
        for plan in plans:
            if plan.site.is_table and plan.table is not None:
                yield plan, round_site(plan.site, plan.table, method), None
            else:
                yield plan, round_site(plan.site, plan.scheme, method), _table_of(plan, method)

    @property
    def _data_free(self) -> DataFree:
        match self.method:
            case "rtn" | "hqq":
                return self.method
            case _:
                return "mse"

    def _is_fitted(self, plan: Plan) -> bool:
        return self.method in ("gptq", "awq-gptq") or plan.scheme.bits < 8

    def _checks(self, ctx: Context, plans: list[Plan]) -> bool:
        """Whether to look at what the provider makes of the model."""
        if not any(plan.form == "packed" for plan in plans):
            return False
        provider = ctx.target.provider
        reason = ""
        if ctx.model.nbytes > _CHECKED_BYTES:
            reason = "the model is larger than 1 GiB"
        elif provider not in available_providers():
            reason = f"{provider} is not installed here"
        if reason:
            ctx.note("WQT107", None, reason)
        return not reason

    def _summarise(self, ctx: Context, plans: list[Plan], before: int, after: int) -> None:
        forms = {"packed": 0, "kernel": 0, "unpacked": 0}
        for plan in plans:
            forms[plan.form] += 1
        each = ", ".join(f"{count} {form}" for form, count in forms.items() if count)
        text = (
            f"{len(plans)} weights ({each}): {before:,} bytes -> {after:,} ({after / before:.3f})"
        )
        ctx.note("WQT108", None, text)
        ctx.edit.count("weights stored in few bits", len(plans))


def _table_of(plan: Plan, method: DataFree) -> Stored | None:
    """The rows of a table that is a matrix too."""
    if plan.table is None or plan.site.is_table:
        return None
    return round_site(plan.site, plan.table, method)


def _is_large(plan: Plan) -> bool:
    """Whether there is no gain; a weight that several read packed has a copy for each."""
    several = plan.form != "unpacked" and len(plan.site.uses) > 1
    return plan.nbytes > (_WORTH_COPIES if several else _WORTH) * int(plan.site.tensor.nbytes)


def _is_finite(ctx: Context, site: Site) -> bool:
    array = site.tensor.numpy()
    step = max(1, (1 << 22) // max(array[0].size, 1))
    for start in range(0, array.shape[0], step):
        if not np.isfinite(array[start : start + step]).all():
            ctx.skip("WQT101", site.value, "it has NaN or infinite values")
            return False
    return True


def _in_reach(ctx: Context, plans: list[Plan]) -> list[Plan]:
    """Raises the opset as far as needed; where that is not possible, weights get 8 bits."""
    while (needed := max((plan.opset for plan in plans), default=0)) > ctx.model.opset:
        reason = _raise_opset(ctx, needed)
        if not reason:
            break
        ctx.skip("WQT102", None, reason)
        plans = [plan.within(needed - 1) for plan in plans]
        plans = [plan for plan in plans if plan.opset < needed]
    return plans


def _raise_opset(ctx: Context, needed: int) -> str:
    """Returns why the model cannot have an opset, empty when it has it now."""
    if needed > newest_opset():
        return f"the runtime knows opsets up to {newest_opset()}"
    mark = ctx.edit.mark()
    blocked = convert(ctx.model, ctx.edit, ctx.facts.get(Shapes()), needed)
    if not blocked:
        _raise_format(ctx, needed)
        return ""
    ctx.edit.rollback(mark)
    node = blocked[0].node
    place = "" if node is None else f"{node.op_type}: "
    return f"opset {needed} is not possible: {place}{blocked[0].reason}"


def _raise_format(ctx: Context, opset: int) -> None:
    for first, version in _IR_OF_OPSET.items():
        if opset >= first:
            ctx.edit.require_ir_version(version)
