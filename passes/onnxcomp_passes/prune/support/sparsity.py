"""Where zeros may be in a weight, and which of its numbers they cost least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LARGEST = 64


@dataclass(frozen=True)
class Pattern:
    """Where zeros may be.

    Attributes:
        kept: Of `width` consecutive input channels of an output no more than `kept` stay; 0 for anywhere.
        width: See `kept`.
        block: Consecutive outputs whose weights go together; 1 for each weight on its own.
        span: Consecutive input channels whose weights go together.
    """

    kept: int = 0
    width: int = 0
    block: int = 1
    span: int = 1

    @property
    def along_channels(self) -> bool:
        """Whether it matters which inputs stand next to each other."""
        return bool(self.width) or self.span > 1

    @property
    def tile(self) -> tuple[int, int]:
        """Inputs and outputs that go together."""
        return self.span, self.block

    def share(self, sparsity: float) -> float:
        """The share of zeros: a pattern with a width has its own."""
        return 1 - self.kept / self.width if self.width else sparsity

    def fits(self, channels: int, outputs: int) -> bool:
        """Whether a weight divides into the parts of the pattern."""
        return outputs % self.block == 0 and channels % max(self.width, self.span) == 0


def parse_pattern(text: str) -> Pattern:
    """Reads `2:4`, `4x1` (four outputs go together), `1x4` (four inputs do) or nothing.

    Raises:
        ValueError: If it is none of these.
    """
    if not text:
        return Pattern()
    kept, colon, width = text.partition(":")
    if colon and kept.isdigit() and width.isdigit() and 0 < int(kept) < int(width) <= _LARGEST:
        return Pattern(int(kept), int(width))
    outputs, cross, inputs = text.partition("x")
    if cross and outputs.isdigit() and inputs.isdigit():
        block, span = int(outputs), int(inputs)
        if min(block, span) >= 1 and 1 < max(block, span) <= _LARGEST:
            return Pattern(block=block, span=span)
    raise ValueError(
        "must be like 2:4 (of four weights two stay) or 4x1 (four outputs, one input go together)"
    )


def mask(
    scores: NDArray[Any], sparsity: float, pattern: Pattern, *, together: bool = False
) -> NDArray[np.bool_]:
    """Returns which weights stay: those with the highest scores.

    Args:
        scores: (K, N), one for each weight.
        sparsity: Share of zeros; a pattern with a width has its own.
        pattern: Where zeros may be.
        together: Compare weights of all outputs, not those of each output with each other.
    """
    inputs, outputs = scores.shape
    if pattern.width:
        return _few_of_each(scores, pattern.kept, pattern.width)
    if pattern.tile != (1, 1):
        span, block = pattern.tile
        tiles = scores.reshape(inputs // span, span, outputs // block, block).sum(axis=(1, 3))
        kept = mask(tiles, sparsity, Pattern(), together=together)
        return kept.repeat(span, axis=0).repeat(block, axis=1)
    if together:
        drop = round(scores.size * sparsity)
        chosen = np.ones(scores.size, np.bool_)
        if drop:
            chosen[np.argpartition(scores, drop - 1, axis=None)[:drop]] = False
        return chosen.reshape(scores.shape)
    drop = round(inputs * sparsity)
    anywhere = np.ones(scores.shape, np.bool_)
    if drop:
        lowest = np.argpartition(scores, drop - 1, axis=0)[:drop]
        np.put_along_axis(anywhere, lowest, values=False, axis=0)
    return anywhere


def _few_of_each(scores: NDArray[Any], kept: int, width: int) -> NDArray[np.bool_]:
    parts = scores.reshape(-1, width, scores.shape[1])
    best = np.argpartition(-parts, kept - 1, axis=1)[:, :kept]
    found = np.zeros(parts.shape, np.bool_)
    np.put_along_axis(found, best, values=True, axis=1)
    return found.reshape(scores.shape)


def magnitude(weight: NDArray[Any], sparsity: float, pattern: Pattern) -> NDArray[np.float64]:
    """Keeps the largest weights of each output (Han et al. 2015, arXiv 1506.02626)."""
    return np.where(mask(np.abs(weight), sparsity, pattern), weight, 0.0).astype(np.float64)


def wanda(
    weight: NDArray[Any], power: NDArray[Any], sparsity: float, pattern: Pattern
) -> NDArray[np.float64]:
    """Keeps the weights whose products are largest: |w| times the norm of what it multiplies.

    Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (2023), arXiv
    2306.11695.

    Args:
        weight: (K, N).
        power: Sum of squares of each input.
        sparsity: Share of zeros.
        pattern: Where zeros may be.
    """
    norms = np.sqrt(np.maximum(power, 0.0))
    scores = np.abs(weight) * norms[:, None]
    return np.where(mask(scores, sparsity, pattern), weight, 0.0).astype(np.float64)
