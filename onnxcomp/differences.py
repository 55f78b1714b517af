"""How far the arrays of one output are apart, gathered sample by sample."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from typing_extensions import override

# Signal-to-noise ratios end here: no float output has more, and JSON has no infinity.
SQNR_LIMIT_DB = 200.0
# Relative errors of elements below this share of the largest one say nothing.
_NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class Tolerance:
    """How far an element may be off: `atol + rtol * |expected| + of_peak * max |expected|`.

    Attributes:
        rtol: Share of the expected element.
        atol: Absolute part.
        of_peak: Share of the largest element of the same output and sample. Sums in another order are
            off by that much where large terms cancel.
    """

    rtol: float = 1e-3
    atol: float = 1e-5
    of_peak: float = 0.0

    @override
    def __str__(self) -> str:
        peak = f", of peak {self.of_peak:g}" if self.of_peak else ""
        return f"rtol {self.rtol:g}, atol {self.atol:g}{peak}"


@dataclass(frozen=True)
class OutputDifference:
    """How one output differs over all samples. Numbers are None for text and empty outputs.

    Attributes:
        name: The output; elements of a sequence are called `name[0]`, entries of a map `name[key]`.
        dtype: Its element type.
        elements: Number of elements compared.
        differing: Number of elements that are not equal.
        sqnr_db: Signal to (quantization) noise in dB over all samples, at most 200.
        cosine: Cosine of the flattened output, mean over samples.
        max_abs: Largest absolute error.
        mean_abs: Mean absolute error.
        max_relative: Largest error relative to the expected element; elements below a millionth of
            the largest count as that large.
        top1: Share of rows with the same largest class, None when the output does not look like scores.
        non_finite: Elements that are NaN or infinite on one side only, or differently so.
        kept: Share of its accuracy that a classifier keeps if its probabilities are right, None when the
            output does not look like scores. A class that was nearly as likely costs next to nothing,
            so a few samples say more than with `top1`.
        probabilities: Whether the rows of scores are probabilities already.
    """

    name: str
    dtype: str
    elements: int
    differing: int
    sqnr_db: float | None
    cosine: float | None
    max_abs: float | None
    mean_abs: float | None
    max_relative: float | None
    top1: float | None
    non_finite: int
    kept: float | None = None
    probabilities: bool = False


def looks_like_scores(array: np.ndarray, *, is_alone: bool = True) -> bool:
    """Whether an output looks like one score per class: a guess that a metric of your own replaces.

    True for rows of probabilities (non-negative, sum 1) of any rank. If it is the only output, true also
    for a matrix of numbers of both signs whose rows are not of unit length, as embeddings often are.
    """
    if array.dtype.kind not in "fV" or array.ndim < 2 or array.shape[-1] < 2 or array.size == 0:
        return False
    rows = _wide(array).reshape(-1, array.shape[-1])
    if not np.isfinite(rows).all():
        return False
    if _are_probabilities(rows):
        return True
    is_unit = np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3)
    return is_alone and array.ndim == 2 and not is_unit and bool((rows < 0).any())


def _are_probabilities(rows: np.ndarray) -> bool:
    return bool((rows >= 0).all()) and np.allclose(rows.sum(axis=-1), 1, atol=1e-2)


class RunningDifference:
    """Running sums for one output, in memory that does not grow with the samples."""

    def __init__(self, name: str, *, is_alone: bool) -> None:
        self.name = name
        self.dtype = ""
        self._is_alone = is_alone
        self.elements = self.differing = self.non_finite = self.samples = 0
        self.signal = self.noise = self.abs_sum = self.cosine_sum = 0.0
        self.max_abs = self.max_relative = 0.0
        self.rows = self.same_rows = 0
        self.believed = self.kept = 0.0
        self.is_scores: bool | None = None
        self.are_probabilities = False
        self.is_numeric = False

    def add(self, want: np.ndarray, got: np.ndarray | None, tolerance: Tolerance | None) -> str:
        """Adds one sample; returns what is wrong with it, empty when nothing is."""
        self.dtype = str(want.dtype)
        is_numeric = _is_numeric(want)
        self.elements += want.size
        self.is_numeric |= is_numeric
        problem = _mismatch(want, got)
        if got is None or problem:
            self.differing += want.size
            if is_numeric:
                self._add_lost(_wide(want))
        elif not is_numeric:
            unequal = int((want != got).sum())
            self.differing += unequal
            problem = (
                f"differs in {unequal} of {want.size} elements" if tolerance and unequal else ""
            )
        else:
            self._add_top1(_wide(want), _wide(got))
            problem = self._add_numbers(want, got, tolerance)
        return problem

    def _add_lost(self, want: np.ndarray) -> None:
        """Counts a sample whose output cannot be compared as wrong throughout."""
        nothing = np.zeros_like(want)
        self._add_top1(want, np.full_like(want, np.nan))
        self._add_sums(np.where(np.isfinite(want), want, 0), nothing, is_broken=True)

    def _add_top1(self, want: np.ndarray, got: np.ndarray) -> None:
        if self.is_scores is None and want.size:
            self.is_scores = looks_like_scores(want, is_alone=self._is_alone)
            self.are_probabilities = bool(self.is_scores) and _are_probabilities(want)
        if self.is_scores and want.ndim >= 2 and want.size:
            same = want.argmax(axis=-1) == got.argmax(axis=-1)
            same &= ~np.isnan(got).any(axis=-1)
            self.rows += same.size
            self.same_rows += int(same.sum())
            self._add_kept(want, got)

    def _add_kept(self, want: np.ndarray, got: np.ndarray) -> None:
        """Adds how probable the best classes are, and how much less so those chosen instead.

        A classifier whose probabilities are right is right that often.
        """
        rows, chosen = want.reshape(-1, want.shape[-1]), got.reshape(-1, want.shape[-1])
        usable = np.isfinite(rows).all(axis=1)
        broken = np.isnan(chosen[usable]).any(axis=1)
        rows, chosen = rows[usable], chosen[usable]
        if not self.are_probabilities:
            rows = np.exp(rows - rows.max(axis=1, keepdims=True))
            rows /= rows.sum(axis=1, keepdims=True)
        best = rows.max(axis=1)
        other = np.take_along_axis(rows, chosen.argmax(axis=1)[:, None], axis=1)[:, 0]
        self.believed += float(best.sum())
        self.kept += float(np.where(broken, 0.0, other).sum())

    def _add_numbers(self, want: np.ndarray, got: np.ndarray, tolerance: Tolerance | None) -> str:
        exact, approximate = _wide(want), _wide(got)
        if want.dtype.kind == "c":
            want, got = exact, approximate
        equal = (want == got) | (np.isnan(exact) & np.isnan(approximate))
        self.differing += want.size - int(equal.sum())
        finite = np.isfinite(exact) & np.isfinite(approximate)
        broken = int((~equal & ~finite).sum())
        self.non_finite += broken
        exact, approximate = np.where(finite, exact, 0), np.where(finite, approximate, 0)
        self._add_sums(exact, approximate, is_broken=broken > 0)
        if broken:
            return f"is NaN or infinite on one side only in {broken} of {want.size} elements"
        return _outside(exact, approximate, tolerance)

    def _add_sums(self, exact: np.ndarray, approximate: np.ndarray, *, is_broken: bool) -> None:
        error = np.abs(exact - approximate)
        self.samples += 1
        self.signal += _energy(exact)
        self.noise += _energy(error)
        self.abs_sum += float(error.sum())
        self.max_abs = max(self.max_abs, float(error.max(initial=0.0)))
        floor = max(_peak(exact) * _NEGLIGIBLE, float(np.finfo(np.float64).tiny))
        relative = error / np.maximum(np.abs(exact), floor)
        self.max_relative = max(self.max_relative, float(relative.max(initial=0.0)))
        self.cosine_sum += 0.0 if is_broken else _cosine(exact, approximate)

    def result(self) -> OutputDifference:
        """Returns the numbers so far."""
        numeric = self.is_numeric and self.samples > 0
        return OutputDifference(
            name=self.name,
            dtype=self.dtype,
            elements=self.elements,
            differing=self.differing,
            sqnr_db=sqnr_db(self.signal, self.noise) if numeric else None,
            cosine=self.cosine_sum / self.samples if numeric else None,
            max_abs=self.max_abs if numeric else None,
            mean_abs=self.abs_sum / max(self.elements, 1) if numeric else None,
            max_relative=self.max_relative if numeric else None,
            top1=self.same_rows / self.rows if self.rows else None,
            non_finite=self.non_finite,
            kept=self.kept / self.believed if self.believed else None,
            probabilities=self.are_probabilities,
        )


def sqnr_db(signal: float, noise: float) -> float:
    """Returns the ratio of two energies in dB, between -200 and 200."""
    if noise == 0:
        return SQNR_LIMIT_DB
    if signal == 0 or not math.isfinite(noise):
        return -SQNR_LIMIT_DB
    ratio = 10 * (math.log10(signal) - math.log10(noise))
    return max(-SQNR_LIMIT_DB, min(SQNR_LIMIT_DB, ratio))


def _mismatch(want: np.ndarray, got: np.ndarray | None) -> str:
    if got is None:
        return "is missing"
    if want.shape != got.shape:
        return f"has shape {list(got.shape)}, not {list(want.shape)}"
    if want.dtype != got.dtype and not want.dtype.kind == got.dtype.kind == "U":
        return f"has type {got.dtype}, not {want.dtype}"
    return ""


def _is_numeric(array: np.ndarray) -> bool:
    """Whether an array holds numbers; those of ml_dtypes have the kind V."""
    return array.dtype.kind in "biufc" or (array.dtype.kind == "V" and array.dtype.names is None)


def _wide(array: np.ndarray) -> np.ndarray:
    """Returns numbers in double precision; complex ones as pairs."""
    if array.dtype.kind == "c":
        return np.stack([array.real, array.imag], axis=-1).astype(np.float64)
    return array.astype(np.float64)


def _peak(array: np.ndarray) -> float:
    return float(np.abs(array).max(initial=0.0))


def _energy(array: np.ndarray) -> float:
    with np.errstate(over="ignore"):
        return float(np.sum(array * array))


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the cosine of two flattened arrays; two zero vectors are equal."""
    peaks = _peak(first), _peak(second)
    if 0.0 in peaks:
        return float(peaks[0] == peaks[1])
    a, b = first.ravel() / peaks[0], second.ravel() / peaks[1]
    return float(a @ b / math.sqrt(float(a @ a) * float(b @ b)))


def _outside(exact: np.ndarray, approximate: np.ndarray, tolerance: Tolerance | None) -> str:
    """Says which element is the furthest outside the tolerance, if any is."""
    if tolerance is None or exact.size == 0:
        return ""
    limit = tolerance.atol + tolerance.rtol * np.abs(exact) + tolerance.of_peak * _peak(exact)
    excess = np.abs(exact - approximate) - limit
    if not (excess > 0).any():
        return ""
    place = np.unravel_index(int(excess.argmax()), exact.shape)
    index = ", ".join(str(axis) for axis in place)
    return (
        f"is {approximate[place]:.6g} instead of {exact[place]:.6g} at [{index}], "
        f"outside {tolerance} in {int((excess > 0).sum())} of {exact.size} elements"
    )
