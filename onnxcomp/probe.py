"""Inputs made up to find out whether two models compute the same: ordinary and awkward numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from onnxcomp.errors import RuntimeUnavailableError, SamplesError, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxcomp.compare import Runner
    from onnxcomp.signature import Signature, TensorSpec

Feeds = dict[str, np.ndarray]


class _Guess(NamedTuple):
    """Sizes for open dimensions, and the bound of whole numbers (they are often indices)."""

    batch: int
    other: int
    bound: int = 2
    # Which dimension of an input is its batch: the first one, or the first one that is open.
    batch_is_first_open: bool = False


_GUESSES = (
    *(_Guess(2, 16, 8), _Guess(1, 16, 8), _Guess(1, 64, 8)),
    *(_Guess(batch, 16) for batch in (2, 1)),
    *(_Guess(size, size) for size in (1, 2, 3)),
    *(_Guess(1, other) for other in (32, 80, 128, 224, 256, 512, 640, 3, 8)),
    *(_Guess(16, 16), _Guess(1, 8, bound=1)),
)
_MOST_ELEMENTS, _BIG_ELEMENTS = 1 << 24, 1 << 17
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
    for guess in _guesses(signature):
        drawn = _draw(signature, guess, count, seed)
        if runner is None:
            return drawn
        accepted, refusal = _accepted(runner, drawn, signature)
        if accepted:
            return accepted
    raise SamplesError(f"the model takes none of the inputs made up for it: {refusal}")


def _guesses(signature: Signature) -> Iterator[_Guess]:
    """Yields guesses, the ones that make no difference only once."""
    has_whole = any(spec.dtype is not None and spec.dtype.kind in "iu" for spec in signature.inputs)
    # Two samples of whole images take long and say little more than one.
    ordered = sorted(_GUESSES, key=lambda guess: guess.batch > 1 and _is_big(signature, guess))
    variants = (
        guess._replace(batch_is_first_open=late) for late in (False, True) for guess in ordered
    )
    seen = set()
    for guess in variants:
        shapes = _shapes(signature, guess)
        key = (tuple(shapes.items()), guess.bound if has_whole else 0)
        if key not in seen and sum(map(math.prod, shapes.values())) <= _MOST_ELEMENTS:
            seen.add(key)
            yield guess


def _is_big(signature: Signature, guess: _Guess) -> bool:
    return sum(map(math.prod, _shapes(signature, guess).values())) > _BIG_ELEMENTS


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


def _shapes(signature: Signature, guess: _Guess) -> dict[str, tuple[int, ...]]:
    """Returns a shape for each tensor input; equal symbols get equal sizes."""
    symbols: dict[str, int] = {}
    shapes = {}
    for spec in signature.inputs:
        if spec.dtype is None:
            continue
        dims = (None, None) if spec.shape is None else spec.shape
        is_open = [not isinstance(dim, int) for dim in dims]
        batch_axis = is_open.index(True) if guess.batch_is_first_open and any(is_open) else 0
        sizes = []
        for axis, dim in enumerate(dims):
            size = guess.batch if axis == batch_axis else guess.other
            if isinstance(dim, str):
                size = symbols.setdefault(dim, size)
            sizes.append(dim if isinstance(dim, int) else size)
        shapes[spec.name] = tuple(sizes)
    return shapes


def _draw(signature: Signature, guess: _Guess, count: int, seed: int) -> list[Feeds]:
    shapes = _shapes(signature, guess)
    rng = np.random.default_rng(seed)
    samples = []
    for index in range(count):
        specs = [
            s
            for s in signature.inputs
            if s.dtype is not None and not (s.optional and index % 2 == 0)
        ]
        samples.append(
            {spec.name: _array(rng, spec, shapes[spec.name], index, guess.bound) for spec in specs}
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
