"""The plan: which nodes are computed in int8, and with which scheme each activation is stored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from onnxcomp.quant.plan_inputs import share_in_joins
from onnxcomp.quant.scheme import Fixed, QScheme, Scheme, Shared

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from onnxcomp.ir import ir
    from onnxcomp.quant.candidates import Candidate, Candidates
    from onnxcomp.targets import Target

Point = str

_KINDS: dict[str, Callable[..., Scheme]] = {"own": QScheme, "shared": Shared, "fixed": Fixed}


@dataclass(frozen=True)
class Plan(Mapping[Point, Scheme]):
    """What is going to be quantized. A mapping from values to schemes.

    Attributes:
        nodes: Family of each node that is computed in int8, by the name of its first output.
        points: Scheme of each activation that is stored in int8.
    """

    nodes: Mapping[str, str] = field(default_factory=dict)
    points: Mapping[Point, Scheme] = field(default_factory=dict)

    @override
    def __getitem__(self, point: Point) -> Scheme:
        return self.points[point]

    @override
    def __iter__(self) -> Iterator[Point]:
        return iter(self.points)

    @override
    def __len__(self) -> int:
        return len(self.points)

    def root(self, point: Point) -> Point:
        """Returns the point whose parameters a point has in the end."""
        scheme = self.points[point]
        while isinstance(scheme, Shared):
            point, scheme = scheme.point, self.points[scheme.point]
        return point

    def to_json(self) -> str:
        """Returns the plan as text that `from_json` reads."""
        points = {name: _encoded(scheme) for name, scheme in self.points.items()}
        return json.dumps({"nodes": dict(self.nodes), "points": points}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Reads a plan."""
        data = json.loads(text)
        points = {}
        for name, fields in data["points"].items():
            points[name] = _KINDS[fields.pop("kind")](**fields)
        return cls(data["nodes"], points)

    @override
    def __str__(self) -> str:
        rows = [f"{name}: {_described(scheme)}" for name, scheme in self.points.items()]
        return "\n".join([f"{len(self.nodes)} nodes in int8, {len(self)} points", *rows])


def _encoded(scheme: Scheme) -> dict[str, Any]:
    kind = next(name for name, made in _KINDS.items() if made is type(scheme))
    return {"kind": kind, **asdict(scheme)}


def _described(scheme: Scheme) -> str:
    match scheme:
        case QScheme(dtype, symmetric):
            return f"{dtype} {'symmetric' if symmetric else 'asymmetric'}"
        case Shared(point):
            return f"as {point}"
        case Fixed(scale, zero_point, dtype):
            return f"{dtype} scale {scale:g} zero {zero_point}"
        case _:
            return str(scheme)


@dataclass(frozen=True)
class Formats:
    """Number formats of activations.

    Attributes:
        usual: That of most.
        others: Those of values whose name, or whose maker's name, matches a pattern; the first one counts.
    """

    usual: QScheme
    others: Mapping[str, QScheme] = field(default_factory=dict)

    def of(self, value: ir.Value) -> QScheme:
        """Returns the format of a value."""
        maker = value.producer()
        names = (value.name or "", maker.name if maker is not None and maker.name else "")
        for pattern, scheme in self.others.items():
            if pattern in names or any(fnmatchcase(name, pattern) for name in names if name):
                return scheme
        return self.usual


def make_plan(
    candidates: Candidates, keys: Collection[str], target: Target, formats: Formats | None = None
) -> Plan:
    """Plans the activations around the nodes that are to be computed in int8.

    Args:
        candidates: Nodes that can be.
        keys: Those that shall be.
        target: Where the model will run.
        formats: Number formats, by default that of the target for all.
    """
    chosen = [candidate for candidate in candidates if candidate.key in keys]
    own = formats or Formats(QScheme(target.activation.dtype, target.activation.symmetric))
    makers = {point.name: c for c in chosen for point in c.points}
    readers = {value.name for c in chosen for value in c.inputs}
    points: dict[Point, Scheme] = {}
    for candidate in chosen:
        for value in candidate.inputs:
            points.setdefault(value.name or "", _scheme(value, makers, own))
        for value in candidate.points:
            if carries_q(candidate, value, readers):
                points.setdefault(value.name or "", _scheme(value, makers, own))
    share_in_joins(points, chosen, target)
    return Plan({c.key: c.family.name for c in chosen}, points)


def carries_q(candidate: Candidate, value: ir.Value, readers: Collection[str | None]) -> bool:
    """Whether an output of an int8 node is stored in int8: always, unless its kernel can write float."""
    return not candidate.family.float_output or value.name in readers


def _scheme(value: ir.Value, makers: Mapping[str | None, Candidate], own: Formats) -> Scheme:
    maker = makers.get(value.name)
    if maker is None:
        return own.of(value)
    if maker.family.role == "follow":
        return Shared(maker.inputs[0].name or "")
    fixed, found = maker.family.fixed, own.of(value)
    is_usual = fixed is not None and found.dtype == "uint8" and not found.symmetric
    return Fixed(fixed.scale, fixed.zero_point) if fixed is not None and is_usual else found
