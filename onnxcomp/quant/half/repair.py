"""Finds what makes the rounding of others large: differences of nearly equal numbers and the like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from onnxcomp.ir import Model
    from onnxcomp.quant.half.sites import Site, Sites

# A share of noise from which on it counts, and how many times what came in it has to be.
_NOISY, _AMPLIFIED = 3e-3, 4.0
_FLOOR = 2.0**-12


def amplifiers(
    before: Model,
    after: Model,
    sites: Sites,
    samples: Iterable[Mapping[str, np.ndarray]],
    *,
    threads: int = 0,
) -> list[Site]:
    """Returns sites whose results are far noisier than what they read, worst first.

    For one that computes in 32 bits already, those that make what it reads come in its place: what they
    rounded off is what it made large.

    Args:
        before: The float model.
        after: The same with some sites in 16 bits; values keep their names.
        sites: The sites of `before`; a `reason` says that one is in 32 bits.
        samples: Feeds.
        threads: Threads of the sessions.
    """
    noise = _noise(before, after, sites, samples, threads)
    found: dict[Site, float] = {}
    for site in sites.found:
        made = max((noise.get(value.name or "", 0.0) for value in site.makes), default=0.0)
        read = max((noise.get(value.name or "", 0.0) for value in site.reads()), default=0.0)
        if made < _NOISY or made < _AMPLIFIED * max(read, _FLOOR):
            continue
        for guilty in _guilty(site, sites):
            found[guilty] = max(found.get(guilty, 0.0), made)
    return sorted(found, key=lambda site: -found[site])


def _guilty(site: Site, sites: Sites) -> list[Site]:
    """The nearest sites in front, this one included, that are not in 32 bits yet."""
    todo, known, found = [site], {site}, []
    while todo:
        one = todo.pop()
        if not one.reason:
            found.append(one)
            continue
        for value in one.reads():
            maker = sites.maker.get(value)
            if maker is not None and maker not in known and maker.node is not None:
                known.add(maker)
                todo.append(maker)
    return found


def _noise(
    before: Model,
    after: Model,
    sites: Sites,
    samples: Iterable[Mapping[str, np.ndarray]],
    threads: int,
) -> dict[str, float]:
    """Noise of each value that both models have, as a ratio of amplitudes."""
    known = _names(before) & _names(after)
    names = [value.name or "" for value in sites.maker if value.name in known]
    difference, energy = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    with (
        Session.open(before, threads=threads, outputs=names) as one,
        Session.open(after, threads=threads, outputs=names) as two,
    ):
        for feeds in samples:
            want, got = one.run(feeds, names), two.run(feeds, names)
            for name in names:
                exact = np.asarray(want[name], np.float64)
                with np.errstate(all="ignore"):
                    error = np.nan_to_num(np.asarray(got[name], np.float64) - exact, nan=np.inf)
                    difference[name] += float(np.square(error).sum())
                energy[name] += float(np.square(exact).sum())
    return {
        name: float(np.sqrt(difference[name] / energy[name])) for name in names if energy[name] > 0
    }


def _names(model: Model) -> set[str]:
    """Values that nodes of the main graph make."""
    return {value.name for node in model.graph for value in node.outputs if value.name}
