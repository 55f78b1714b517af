"""Candidates of a search with fewer channels: by themselves, and in small numbers as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from onnxcomp.search import Search
    from onnxcomp.trials import Trial
    from onnxcomp.variants import Variant

# How much of the arithmetic goes first; then the interval is halved in which the limit is met.
FIRST_SHARE = 0.3
ATTEMPTS = 4
# Two shares that are this near to each other are equally good.
_NEAR = 0.08
COMBINATIONS = 3


def pruned(search: Search, simplified: Trial) -> Iterator[Trial]:
    """Yields models of which some of the arithmetic was taken away; the most inside the limit is looked for.

    Args:
        search: The search.
        simplified: What they are made from.
    """
    low, high, share = 0.0, 1.0, FIRST_SHARE
    sizes: set[int] = set()
    for _ in range(ATTEMPTS):
        step = ("prune-channels", {"flops": round(share, 4)})
        trial = search.continued(simplified, f"{share:.0%} pruned", (step,))
        if trial is None or trial.model.nbytes in sizes:
            return  # nothing goes, or channels go in steps that are coarser than these
        sizes.add(trial.model.nbytes)
        yield trial
        if trial.rejected:
            high = share
        else:
            low = share
        share = (low + high) / 2
        if high - low < 2 * _NEAR:
            return


def combined(search: Search, built: Mapping[str, Variant]) -> Iterator[Trial]:
    """Yields models that are pruned and quantized: the most pruned, in the fastest way that was good by itself.

    Args:
        search: The search, after it has tried both by themselves.
        built: The ways to quantize that were tried, by the label of the candidate.
    """
    possible = [trial for trial in search.trials if not trial.rejected]
    smaller = sorted(filter(_is_pruned, possible), key=lambda trial: trial.model.nbytes)
    if not smaller:
        return
    fast = search.by_speed([trial for trial in possible if trial.label in built])
    if not fast:
        return
    variant = built[fast[0].label]
    for trial in smaller[:COMBINATIONS]:
        prepared = search.prepared(trial)
        made = search.build(prepared, variant, f"{trial.label}, {variant.label}")
        if made is not None:
            yield made
            if not made.rejected:
                return


def _is_pruned(trial: Trial) -> bool:
    return any(outcome.step.startswith("prune-") for outcome in trial.outcomes)
