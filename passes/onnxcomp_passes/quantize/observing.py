"""Chooses the observer of each activation."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import override

from onnxcomp.compare import Reference
from onnxcomp.quant.damage import channel_noise, channel_power, own_noise, read_power, reader_noise
from onnxcomp.quant.scheme import QScheme
from onnxcomp.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from onnxcomp.passbase import Progress
    from onnxcomp.quant.candidates import Candidate
    from onnxcomp.quant.channels import Channels
    from onnxcomp.quant.observers import Method
    from onnxcomp.quant.plan import Plan
    from onnxcomp_passes.quantize.trial import Bench

    Feeds = Mapping[str, np.ndarray]
    Methods = Mapping[str, Method]

# The averages of a few samples cut off what others need, so they are taken only when asked for.
CHOICES: tuple[Method, ...] = ("mse", "min-max", "percentile")
# A choice must be this much nearer to float than another one, and surely so, to be preferred.
_NOTABLE_DB, _SURELY = 0.1, 2.5
# A sample that is nearer than this is near enough, and one that is farther off is lost anyway.
_ENOUGH_DB, _LOST_DB = 40.0, -20.0


@dataclass(frozen=True)
class Found:
    """What was chosen.

    Attributes:
        methods: The observer of each point that has numbers of its own.
        decibels: Ratio of signal to noise of the outputs, the mean over samples, 40 dB at most of each.
        single: The one observer that was taken for all points, empty when each has its own.
    """

    methods: Methods
    decibels: float
    single: str = ""

    @override
    def __str__(self) -> str:
        counts = Counter(self.methods.values())
        each = ", ".join(f"{method} for {count}" for method, count in sorted(counts.items()))
        why = f", because {self.single} for all came nearer" if self.single else ""
        return f"observers: {each}{why}; {self.decibels:.1f} dB on calibration samples"


@dataclass
class ObserverSearch:
    """Finds the observer of each point by what rounding does to the operators that read it.

    The squared error of a tensor alone misleads: the outliers of a LayerNormalization are what the next
    layer needs, those of a Gelu are not. So errors of channels count as the weights that read them. The
    whole model has the last word: where one observer for all points comes nearer to float on samples,
    by much more than chance, that one is taken. (Choosing point by point with the whole model follows chance:
    it gains decibels on the samples at hand and loses them on others.)

    Attributes:
        bench: The model.
        plan: What is quantized.
        channels: What is known of the channels of activations.
        samples: What to judge on.
        threads: Threads of the sessions.
        progress: Progress bars.
    """

    bench: Bench
    plan: Plan
    channels: Mapping[str, Channels]
    samples: Iterable[Feeds]
    threads: int
    progress: Progress
    _known: dict[tuple[str, Method], float] = field(default_factory=dict)
    _errors: dict[tuple[str, Method], NDArray[np.float64]] = field(default_factory=dict)
    _powers: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def run(self, choices: Sequence[Method] = CHOICES) -> Found:
        """Returns the observers."""
        roots = [root for root in self._roots() if isinstance(self.plan[root], QScheme)]
        provider = self.bench.target.provider
        with (
            self.progress(1 + len(choices), "choosing observers") as task,
            Session.open(self.bench.model, provider=provider, threads=self.threads) as session,
        ):
            reference = Reference(session, self.samples)
            best = self.by_readers(roots, choices)
            most, single = self._decibels(best, reference), ""
            task.advance()
            for method in choices:
                uniform = dict.fromkeys(roots, method)
                if uniform != best:
                    found = self._decibels(uniform, reference)
                    if _is_better(found, most):
                        best, most, single = uniform, found, method
                task.advance()
        return Found(best, float(most.mean()) if most.size else math.inf, single)

    def by_readers(self, roots: Sequence[str], choices: Sequence[Method]) -> dict[str, Method]:
        """Returns for each point the observer that its readers suffer least from."""
        suffered = {root: dict.fromkeys(choices, 0.0) for root in roots}
        read = set()
        for reader, point, index in self._reads():
            root = self.plan.root(point)
            if root in suffered:
                read.add(root)
                power = read_power(reader) if index == 0 else None
                for method in choices:
                    suffered[root][method] += self._noise(root, point, power, method)
        for root in suffered.keys() - read:
            for method in choices:
                suffered[root][method] = self._noise(root, root, None, method)
        return {
            root: min(choices, key=lambda m, s=shares: (s[m], choices.index(m)))  # type: ignore[misc]
            for root, shares in suffered.items()
        }

    def _roots(self) -> list[str]:
        return list(dict.fromkeys(self.plan.root(point) for point in self.plan))

    def _reads(self) -> Iterator[tuple[Candidate, str, int]]:
        for candidate in self.bench.candidates:
            if candidate.key in self.plan.nodes:
                for index, value in enumerate(candidate.inputs):
                    if value.name in self.plan:
                        yield candidate, value.name or "", index

    def _noise(
        self, root: str, point: str, power: NDArray[np.float64] | None, method: Method
    ) -> float:
        scheme = self.plan[root]
        channels = self.channels.get(point)
        params = self.bench.params(self.plan, root, method)
        known = channels is not None and len(channels.vectors) > 0
        if channels is not None and known and power is not None and power.size == channels.size:
            key = (point, method)
            if key not in self._errors:
                self._errors[key] = channel_noise(channels, params)
            if point not in self._powers:
                self._powers[point] = channel_power(channels)
            return reader_noise(self._errors[key], self._powers[point], power)
        if not isinstance(scheme, QScheme):
            raise TypeError(f"a point without numbers of its own: {root}")
        if (root, method) not in self._known:
            self._known[root, method] = own_noise(self.bench.seen[root], *params.range, scheme)
        return self._known[root, method]

    def _decibels(self, methods: Methods, reference: Reference) -> NDArray[np.float64]:
        """Ratio of signal to noise of each sample's worst output."""
        bench = self.bench
        with (
            bench.applied(self.plan, methods) as model,
            Session.open(model, provider=bench.target.provider, threads=self.threads) as quantized,
        ):
            found = [_worst(outputs, quantized.run(feeds)) for feeds, outputs in reference]
        return np.array([decibels for decibels in found if decibels is not None])


def _is_better(found: NDArray[np.float64], most: NDArray[np.float64]) -> bool:
    """Whether one choice is nearer to float than another one, by much more than the standard error."""
    if found.size != most.size or not found.size:
        return bool(found.size > most.size)
    gains = found - most
    error = float(gains.std(ddof=1)) / math.sqrt(gains.size) if gains.size > 1 else 0.0
    return bool(gains.mean() > max(_NOTABLE_DB, _SURELY * error))


def _worst(expected: Mapping[str, object], actual: Mapping[str, object]) -> float | None:
    """Smallest ratio of signal to noise in dB over the floating point outputs; None without any."""
    ratios = []
    for name, wanted in expected.items():
        got = actual.get(name)
        if not isinstance(wanted, np.ndarray) or not np.issubdtype(wanted.dtype, np.floating):
            continue
        if not isinstance(got, np.ndarray) or got.shape != wanted.shape:
            return _LOST_DB
        signal = float(np.square(wanted, dtype=np.float64).sum())
        noise = float(np.square(np.subtract(got, wanted, dtype=np.float64)).sum())
        ratios.append(_ratio(signal, noise))
    return min(ratios, default=None)


def _ratio(signal: float, noise: float) -> float:
    if not math.isfinite(noise) or not math.isfinite(signal):
        return _LOST_DB
    if noise <= signal * 10 ** (-_ENOUGH_DB / 10):
        return _ENOUGH_DB
    return max(10.0 * math.log10(signal / noise), _LOST_DB) if signal > 0.0 else _LOST_DB
