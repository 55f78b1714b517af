"""AWQ: rows of weights that meet large activations are made larger before they are rounded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.ir.ops import constant
from onnxcomp.quant.awq import awq_scales
from onnxcomp.quant.blocks import block_params
from onnxcomp_passes.quantize.scaling import apply_scale, find_links
from onnxcomp_passes.quantize.weight_forms import as_matrix
from onnxcomp_passes.quantize.weight_methods import grams_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from onnxcomp.passbase import Context
    from onnxcomp.quant.grams import Gram
    from onnxcomp_passes.quantize.scaling import Link
    from onnxcomp_passes.quantize.weight_plans import Plan

# Error on held-out samples, as a share of that without scales, above which nothing is scaled.
_LEAST = 0.98


@dataclass(frozen=True, eq=False)
class _Group:
    """Weights that read one activation, which something in front can divide."""

    link: Link
    plans: tuple[Plan, ...]


def scale_plans(ctx: Context, plans: Sequence[Plan], memory_limit: int) -> list[Plan]:
    """Scales activations and weights of the float model where that makes rounding cost less.

    Only where something in front takes the division, so that nothing is computed more; and only where
    it helps on samples that were not used to find the scale.

    Returns:
        The plans; those of scaled weights know their new contents.
    """
    groups = _groups(ctx, plans)
    if not groups:
        return list(plans)
    first = {group.plans[0].site: group for group in groups}
    sites = list(first)
    scales = []
    for site, fit, judge in grams_of(ctx, ctx.model.copy(), sites, memory_limit):
        found = _scale(first[site], fit, judge)
        if found is not None:
            scales.append((first[site], found))
    changed = {}
    for group, scale in scales:
        apply_scale(ctx.edit, group.link, scale.astype(np.float32))
        ctx.edit.count("activations scaled")
    for plan in plans:
        tensor = constant(plan.site.value)
        if tensor is not None and tensor is not plan.site.tensor:
            changed[plan.site] = replace(plan.site, tensor=tensor)
    total = len(scales)
    ctx.note("WQT110", None, f"{total} of {len(groups)} activations were scaled")
    return [replace(plan, site=changed.get(plan.site, plan.site)) for plan in plans]


def _groups(ctx: Context, plans: Sequence[Plan]) -> list[_Group]:
    """Returns activations that only weights with few bits read, each once."""
    by_node = {
        use.node: plan
        for plan in plans
        for use in plan.site.uses
        if plan.site.is_matrix and plan.scheme.bits < 8 and len(plan.site.uses) == 1
    }
    # A new constant takes their place where they are scaled, and the plan would overwrite that.
    copied = {
        plan.site.value
        for plan in plans
        if len(plan.site.uses) > 1 or not plan.site.value.is_initializer()
    }
    found = []
    for link in find_links(ctx.model.graph, ctx.facts.get(Shapes()), ("MatMul", "Gemm")):
        if link.maker is None or not all(node in by_node for node in link.readers):
            continue
        if not any(part.node.inputs[part.index] in copied for part in link.maker.parts):
            found.append(_Group(link, tuple(by_node[node] for node in link.readers)))
    return found


def _scale(group: _Group, fit: Gram, judge: Gram) -> NDArray[np.float64] | None:
    """Returns the scale of an activation, None where none helps."""
    weights = [as_matrix(plan.site).astype(np.float64) for plan in group.plans]
    scheme = group.plans[0].scheme

    def rounded(weight: NDArray[np.float64]) -> NDArray[np.float32]:
        return block_params(weight, scheme, "rtn").round(weight)

    scale, share = awq_scales(weights, fit, rounded)
    if share > _LEAST:
        return None
    before = sum(judge.error(weight - rounded(weight)) for weight in weights)
    column = scale[:, None]
    after = sum(judge.error(weight - rounded(weight * column) / column) for weight in weights)
    return scale if after < _LEAST * before else None
