"""Inputs made up to find out whether two models compute the same: ordinary and awkward numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.errors import RuntimeUnavailableError, SamplesError, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from onnxcomp.compare import Runner
    from onnxcomp.signature import Dim, Signature, TensorSpec

Feeds = dict[str, np.ndarray]

# What to try for the first dimension of an input and for all others when they are not numbers, and
# the bound of whole numbers (they are often indices), until the model takes it.
_ATTEMPTS: tuple[tuple[int, int, int], ...] = (
    *((2, 16, 8), (1, 16, 8), (1, 64, 8), (2, 16, 2), (1, 16, 2), (1, 1, 2), (3, 3, 3), (2, 2, 2)),
    *(
        (1, 32, 2),
        (1, 128, 2),
        (1, 224, 2),
        (1, 256, 2),
        (16, 16, 2),
        (1, 8, 1),
        (1, 3, 2),
        (1, 80, 2),
    ),
)
_MOST_ELEMENTS = 1 << 24
# Shares of the elements that are replaced by awkward numbers, in samples that have any.
_AWKWARD_SHARE = 0.05
_WORDS = ("", "a", "abc", "Ünï", "0", "1.5")


def probe_feeds(
    signature: Signature, *, count: int = 3, seed: int = 0, runner: Runner | None = None
) -> list[Feeds]:
    """Makes up samples that fit the declared inputs of a model.

    Among the numbers are negative ones, zeros, large and subnormal ones; whole numbers are small and not
    negative. Equal symbols get equal sizes. Inputs with a default are left out of every second sample.

    Args:
        signature: The model's interface.
        count: Number of samples.
        seed: Makes them the same every time.
        runner: Something that runs the model. Sizes of open dimensions are then tried until it
            takes them; without one the first guess is returned.

    Raises:
        SamplesError: If an input is not a tensor, or the model takes none of the guesses.
    """
    for spec in signature.inputs:
        if spec.dtype is None and not spec.optional:
            raise SamplesError(
                f"cannot make up a value for input {quoted(spec.name)}: not a tensor"
            )
    refusal = ""
    for attempt in _attempts(signature):
        drawn = _draw(signature, attempt, count, seed)
        if runner is None:
            return drawn
        accepted, refusal = _accepted(runner, drawn, signature)
        if accepted:
            return accepted
    raise SamplesError(f"the model takes none of the inputs made up for it: {refusal}")


def _attempts(signature: Signature) -> Iterator[tuple[int, int, int]]:
    """Yields guesses, the ones that make no difference only once."""
    seen = set()
    for attempt in _ATTEMPTS:
        shapes = tuple(_shapes(signature, attempt).items())
        whole = any(spec.dtype is not None and spec.dtype.kind in "iu" for spec in signature.inputs)
        key = (shapes, attempt[2] if whole else 0)
        sizes = [int(np.prod(shape, dtype=np.float64)) for _, shape in shapes]
        if key not in seen and sum(sizes) <= _MOST_ELEMENTS:
            seen.add(key)
            yield attempt


def _accepted(runner: Runner, drawn: list[Feeds], signature: Signature) -> tuple[list[Feeds], str]:
    """Returns the samples that the model takes, and why it refused one that it has to take."""
    required = {spec.name for spec in signature.inputs if not spec.optional}
    accepted = []
    for feeds in drawn:
        bare = {name: array for name, array in feeds.items() if name in required}
        refusal = _refusal(runner, feeds)
        if refusal and len(bare) < len(feeds):  # perhaps only the made-up default is wrong
            feeds, refusal = bare, _refusal(runner, bare)
        if refusal:
            return [], refusal
        accepted.append(feeds)
    return accepted, ""


def _refusal(runner: Runner, feeds: Feeds) -> str:
    try:
        runner.run(feeds)
    except (SamplesError, RuntimeUnavailableError) as error:
        return error.message
    return ""


def _shapes(signature: Signature, attempt: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    first, other, _ = attempt
    symbols: dict[str, int] = {}

    def size(dim: Dim, axis: int) -> int:
        guess = first if axis == 0 else other
        if isinstance(dim, str):
            return symbols.setdefault(dim, guess)
        return guess if dim is None else dim

    return {
        spec.name: tuple(size(dim, axis) for axis, dim in enumerate(_dims(spec)))
        for spec in signature.inputs
        if spec.dtype is not None
    }


def _dims(spec: TensorSpec) -> Sequence[Dim]:
    return (None, None) if spec.shape is None else spec.shape


def _draw(
    signature: Signature, attempt: tuple[int, int, int], count: int, seed: int
) -> list[Feeds]:
    shapes = _shapes(signature, attempt)
    rng = np.random.default_rng(seed)
    samples = []
    for index in range(count):
        specs = [
            s
            for s in signature.inputs
            if s.dtype is not None and not (s.optional and index % 2 == 0)
        ]
        samples.append(
            {spec.name: _array(rng, spec, shapes[spec.name], index, attempt[2]) for spec in specs}
        )
    return samples


def _array(
    rng: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...], index: int, bound: int
) -> np.ndarray:
    dtype = spec.dtype
    if dtype is None:
        raise SamplesError(f"cannot make up a value for input {quoted(spec.name)}: not a tensor")
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(np.bool_)
    if dtype.kind in "iu":
        return rng.integers(0, bound, shape).astype(dtype)
    if dtype.kind in "OUS":
        return rng.choice(np.array(_WORDS, dtype=object), shape).astype(object).reshape(shape)
    if dtype.kind == "c":
        pairs = _numbers(rng, (*shape, 2), index)
        return (pairs[..., 0] + 1j * pairs[..., 1]).astype(dtype)
    if dtype.kind == "V" and "int" in dtype.name:
        return rng.integers(0, 2, shape).astype(dtype)
    return _narrow(_numbers(rng, shape, index), dtype)


def _numbers(rng: np.random.Generator, shape: tuple[int, ...], index: int) -> np.ndarray:
    """Returns normal numbers in even samples, a mixture with awkward ones in odd samples."""
    numbers = rng.standard_normal(shape)
    if index % 2 == 0:
        return np.asarray(numbers)
    awkward = np.array([0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40, 1e-7, 1e3, -1e3, 2.5, 65504.0, -300.0])
    chosen = rng.random(shape) < _AWKWARD_SHARE
    return np.where(chosen, rng.choice(awkward, shape), numbers * 10 ** rng.uniform(-2, 1))


def _narrow(numbers: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Casts to a type, keeping within its finite numbers."""
    with np.errstate(all="ignore"):
        cast = numbers.astype(dtype)
        wide = cast.astype(np.float64)
    return np.where(np.isfinite(wide), cast, np.ones((), dtype)).astype(dtype)
