"""Inputs made up to find out whether two models compute the same: ordinary and awkward numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from onnxcomp.errors import RuntimeUnavailableError, SamplesError, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

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
# What replaces some of the normal numbers, sample by sample: a few awkward ones; many of them; large
# ones, which have a sample to themselves because errors are judged against the largest element.
_AWKWARD = (0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40, 1e-7, -1e-7, 2.5, -3.0, 6.0, 0.5)
_LARGE = (1e3, -1e3, 65504.0, -300.0, 1e6, -1e6, 1e9, -1e9)
_MIXTURES = ((0.05, _AWKWARD), (0.5, (*_AWKWARD, 1e3, -1e3)), (0.3, _LARGE))
_WORDS = ("", "a", "abc", "Ünï", "0", "1.5")


def probe_feeds(
    signature: Signature,
    *,
    count: int = 3,
    seed: int = 0,
    runner: Runner | None = None,
    vary_sizes: bool = False,
    enough: Callable[[list[Feeds]], bool] = lambda accepted: False,
) -> list[Feeds]:
    """Makes up samples that fit the declared inputs of a model.

    Among the numbers are negative ones, zeros and subnormal ones, in the second sample many, in the
    third one large ones; whole numbers are small and not negative. Equal symbols get equal sizes.
    Inputs with a default are left out of every second sample. Where a model answers awkward numbers
    with nothing but NaN, it gets normal ones instead.

    Args:
        signature: The model's interface.
        count: Number of samples.
        seed: Makes them the same every time.
        runner: Something that runs the model. Sizes of open dimensions are then tried until it
            takes them; without one the first guess is returned.
        vary_sizes: Give open dimensions other sizes from the second sample on, 1 among them, if the
            runner takes them.
        enough: Asked after each sample that was accepted; ends the search before `count`.

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
        if runner is None:
            return [_sample(signature, guess, index, seed) for index in range(count)]
        trial = _Trial(signature, runner, seed)
        accepted: list[Feeds] = []
        while len(accepted) < count and not (accepted and enough(accepted)):
            index = len(accepted)
            others = _other_sizes(signature, guess, index) if vary_sizes and index else []
            found = next(filter(None, (trial.accepted(g, index) for g in (*others, guess))), None)
            if found is None:
                break
            accepted.append(found)
        refusal = trial.refusal
        if accepted and (len(accepted) == count or enough(accepted)):
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


class _Trial:
    """Offers made-up samples to a model."""

    def __init__(self, signature: Signature, runner: Runner, seed: int) -> None:
        self._signature = signature
        self._runner = runner
        self._seed = seed
        self._required = {spec.name for spec in signature.inputs if not spec.optional}
        self.refusal = ""

    def accepted(self, guess: _Guess, index: int) -> Feeds | None:
        """Returns the sample of a number if the model takes it, with normal numbers if need be."""
        feeds, says_something = self._offer(_sample(self._signature, guess, index, self._seed))
        if feeds is None or says_something:
            return feeds
        plain = _sample(self._signature, guess, index, self._seed, plain=True)
        return self._offer(plain)[0] or feeds

    def _offer(self, feeds: Feeds) -> tuple[Feeds | None, bool]:
        """Returns what the model takes of a sample, and whether it answers with finite numbers."""
        bare = {name: array for name, array in feeds.items() if name in self._required}
        # Perhaps only the made-up default is wrong.
        for offered in (feeds, bare) if len(bare) < len(feeds) else (feeds,):
            try:
                outputs = self._runner.run(offered)
            except (SamplesError, RuntimeUnavailableError) as error:
                self.refusal = error.message
            else:
                return offered, all(map(_is_finite, outputs.values()))
        return None, False


def _is_finite(output: object) -> bool:
    is_float = isinstance(output, np.ndarray) and output.dtype.kind == "f"
    return not is_float or bool(np.isfinite(output).all())  # type: ignore[call-overload]


def _other_sizes(signature: Signature, guess: _Guess, index: int) -> list[_Guess]:
    """Another batch and half of the other sizes; in every second sample one of everything first."""
    other = guess._replace(batch=2 if guess.batch == 1 else 1, other=max(guess.other // 2, 1))
    ones = guess._replace(batch=1, other=1)
    batch = guess._replace(batch=other.batch)
    shapes = _shapes(signature, guess)
    return [
        found
        for found in ((ones, other) if index % 2 == 0 else (other, batch))
        if _shapes(signature, found) != shapes
        and (found.batch <= guess.batch or not _is_big(signature, found))
    ]


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


def _sample(
    signature: Signature, guess: _Guess, index: int, seed: int, *, plain: bool = False
) -> Feeds:
    shapes = _shapes(signature, guess)
    rng = np.random.default_rng((seed, index))
    share, special = _MIXTURES[index % len(_MIXTURES)]
    mixture = (0.0 if plain else share, special)
    return {
        spec.name: _array(rng, spec, shapes[spec.name], mixture, guess.bound)
        for spec in signature.inputs
        if spec.dtype is not None and not (spec.optional and index % 2 == 0)
    }


def _array(
    rng: np.random.Generator,
    spec: TensorSpec,
    shape: tuple[int, ...],
    mixture: tuple[float, Sequence[float]],
    bound: int,
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
        pairs = _numbers(rng, (*shape, 2), mixture)
        return (pairs[..., 0] + 1j * pairs[..., 1]).astype(dtype)
    if dtype.kind == "V" and "int" in dtype.name:
        return rng.integers(0, 2, shape).astype(dtype)
    return _narrow(_numbers(rng, shape, mixture), dtype)


def _numbers(
    rng: np.random.Generator, shape: tuple[int, ...], mixture: tuple[float, Sequence[float]]
) -> np.ndarray:
    """Returns normal numbers, a share of which special ones replace, each of them in turn."""
    numbers = np.asarray(rng.standard_normal(shape))
    share, special = mixture
    flat = numbers.reshape(-1)
    room = int(share * flat.size + rng.random())
    if share and room:
        places = rng.choice(flat.size, room, replace=False, shuffle=False)
        flat[places] = np.resize(rng.permutation(special), room)
    return numbers


def _narrow(numbers: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Casts to a type, keeping within its finite numbers."""
    with np.errstate(all="ignore"):
        cast = numbers.astype(dtype)
        wide = cast.astype(np.float64)
    return np.where(np.isfinite(wide), cast, np.ones((), dtype)).astype(dtype)
