"""How much to remove: a share of units, of the arithmetic, of the weights, or of the measured time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import override

from onnxcomp.bench import Limits, measure
from onnxcomp.cpuinfo import cpu_features
from onnxcomp.errors import SamplesError, UserError
from onnxcomp.ir.storage import attribute_tensors
from onnxcomp.passbase import Pass
from onnxcomp.samples import load_samples
from onnxcomp_passes.prune.support.arithmetic import arithmetic

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from onnxcomp.ir import Model
    from onnxcomp.passbase import Context

# Halvings of the share that is looked for: finer than a channel of a thousand.
STEPS = 12
# What is timed is told apart less finely.
SHARES = tuple(step / 20 for step in range(1, 20))
_SECONDS = 1.0
_TIMED_SAMPLES = 4
# Channels of a block of onnxruntime's blocked layout with AVX-512 (MlasNchwcGetBlockSize).
_WIDE_BLOCK = 16
_MANY = 4


def parse_share(value: object) -> object:
    """Turns `50%` into 0.5; everything else stays what it is."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.endswith("%"):
        return float(text[:-1]) / 100
    return float(text)


def parse_factor(value: object) -> object:
    """Turns `0.6x` and `60%` into 0.6; everything else stays what it is."""
    if isinstance(value, str):
        return parse_share(value.strip().removesuffix("x"))
    return value


Share = Annotated[float, BeforeValidator(parse_share), Field(gt=0, lt=1)]
Factor = Annotated[float, BeforeValidator(parse_factor), Field(gt=0, lt=1)]


class Goals(Pass):
    """A pass that is told how much to remove."""

    ratio: Share | None = None
    """Share of what can go that goes, 0.5 when nothing else is asked for."""
    flops: Share | None = None
    """Share of the arithmetic to remove, `50%` or 0.5; an open batch counts as 1, other open dimensions
    as 128."""
    parameters: Annotated[Share | None, Field(json_schema_extra={"flag": "params"})] = None
    """Share of the weights to remove, `50%` or 0.5."""
    latency: Factor | None = None
    """Share of the time to keep, measured side by side with the original on one thread: `0.6x` asks for a
    model that takes at most 0.6 of the time."""

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        goals = (self.ratio, self.flops, self.parameters, self.latency)
        if sum(goal is not None for goal in goals) > 1:
            raise ValueError("give one of ratio, flops, parameters and latency")
        return self

    def gauge(self, ctx: Context) -> Gauge | None:
        """Returns how to tell whether the goal is reached; None when it is a share of the units."""
        if self.flops is not None:
            return ArithmeticGauge(1 - self.flops, ctx.model)
        if self.parameters is not None:
            return WeightsGauge(1 - self.parameters, ctx.model)
        if self.latency is not None:
            return LatencyGauge(self.latency, ctx)
        return None


@dataclass
class Gauge(ABC):
    """Tells how much of a model is left.

    Attributes:
        goal: Share that may be left.
        adds_up: Whether what units save adds up, so that each has a price.
    """

    adds_up: ClassVar[bool] = True
    goal: float

    @abstractmethod
    def left(self, model: Model) -> float:
        """Returns the share that is left, of what the model was."""

    def least_share(self, left: Callable[[float], float]) -> tuple[float, bool]:
        """Returns the least share to remove at which the goal is reached, and whether one was found.

        Args:
            left: What is left when a share, of 0 to 1, is removed; it must fall as the share rises.
        """
        low, high = 0.0, 1.0
        for _ in range(STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if left(middle) <= self.goal else (middle, high)
        return high, high < 1.0


@dataclass
class ArithmeticGauge(Gauge):
    """Operations of one run."""

    model: Model

    def __post_init__(self) -> None:
        self._before = _arithmetic(self.model)

    @override
    def left(self, model: Model) -> float:
        return _arithmetic(model) / self._before


@dataclass
class WeightsGauge(Gauge):
    """Numbers in weights of all scopes, those of constant nodes too, each one once."""

    model: Model

    def __post_init__(self) -> None:
        self._before = max(_weights(self.model), 1)

    @override
    def left(self, model: Model) -> float:
        return _weights(model) / self._before


@dataclass
class LatencyGauge(Gauge):
    """Time of one run, measured in turns with the model as it was."""

    adds_up: ClassVar[bool] = False
    ctx: Context

    def __post_init__(self) -> None:
        self._before = self.ctx.model.copy()
        self._feeds = _feeds(self.ctx)

    @override
    def left(self, model: Model) -> float:
        models = {"before": self._before, "after": model}
        found = measure(
            models,
            self._feeds,
            provider=self.ctx.target.provider,
            limits=Limits(seconds=_SECONDS),
        )
        return found["after"].ratio.median

    @override
    def least_share(self, left: Callable[[float], float]) -> tuple[float, bool]:
        """Tries shares from small to large: time may rise where kernels like fewer channels less."""
        found: dict[float, float] = {}
        for share in SHARES:
            found[share] = left(share)
            if found[share] <= self.goal:
                return share, True
        return min(found, key=lambda share: found[share]), False


def preferred_multiple(ctx: Context, units: int, *, timed: bool) -> int:
    """Returns what the number of units that are left should be a multiple of.

    Kernels work on blocks of channels (`multiple_of` of the target), and the fast ones only take whole parts
    of them (`alignment`): a Conv that onnxruntime cannot bring into its blocked layout is slower with fewer
    channels than with more. A group that is left with part of a block pays for a whole one. Rounding a
    group of few blocks would remove much more or much less than what was asked for, so those are rounded
    to less, unless time is what counts.

    Args:
        ctx: The pass.
        units: Units of the group.
        timed: Whether the goal is time.
    """
    target = ctx.target
    blocks = [target.multiple_of, target.alignment]
    if timed and target.provider == "cpu" and "avx512f" in cpu_features():
        blocks.insert(0, _WIDE_BLOCK)
    least = 2 if timed else _MANY
    fitting = (block for block in blocks if units >= least * block)
    return next(fitting, target.alignment if units >= 2 * target.alignment else 1)


def _arithmetic(model: Model) -> float:
    total = arithmetic(model)
    if not total:
        raise UserError(
            "the arithmetic of the model cannot be counted, because shapes are not known",
            hint="ask for a share of the channels (ratio) or of the weights (parameters)",
        )
    return total


def _weights(model: Model) -> int:
    stored = sum(int(v.const_value.size) for v in model.initializers() if v.const_value)
    return stored + sum(int(tensor.size) for tensor in attribute_tensors(model))


def _feeds(ctx: Context) -> Sequence[Mapping[str, np.ndarray[Any, Any]]]:
    """A few samples; made-up ones where there are none, because time depends little on what they hold."""
    given = list(islice(ctx.samples or (), _TIMED_SAMPLES))
    if given:
        return given
    try:
        return list(load_samples(f"random:{_TIMED_SAMPLES}", ctx.model.signature().inputs))
    except SamplesError as error:
        raise SamplesError(
            f"nothing to measure time with: {error.message}", hint="give --data"
        ) from error
