"""Brings the nodes of a model to another opset, one version at a time, in every scope.

`onnx.version_converter` (1.23) rebuilds the whole model in another representation: local functions and
the metadata of nodes are gone afterwards, so here only the nodes that changed are touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from onnx import defs

from onnxcomp.ir.ops import standard_op
from onnxcomp.ir.renames import declare_opset
from onnxcomp_passes.convert.down import DOWN, LOWEST
from onnxcomp_passes.convert.site import Obstacle, Site
from onnxcomp_passes.convert.up import OLDEST, REVIEWED, UP
from onnxcomp_passes.simplify.scopes import nested, scope_versions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from onnxcomp.ir import Edit, Model, ir
    from onnxcomp_passes.convert.site import Knowledge


@dataclass(frozen=True)
class Blocked:
    """Something that cannot be brought to the other opset.

    Attributes:
        node: The node, None for the model as a whole.
        reason: Why.
        at: The version at which its operator changed.
    """

    node: ir.Node | None
    reason: str
    at: int = 0


def convert(model: Model, edit: Edit, known: Knowledge, target: int) -> list[Blocked]:
    """Converts every node, also in bodies and local functions, and declares the new version.

    Args:
        model: The model.
        edit: How to change it; after an obstacle the caller has to roll back.
        known: Types and shapes.
        target: The opset to convert to.

    Returns:
        What is in the way, empty when the conversion is complete.
    """
    versions = scope_versions(model)
    if blocked := _bounds(versions.values(), target):
        return [blocked]
    found = _convert_scopes(model, edit, known, versions, target)
    functions = model.core.functions.values()
    for imports in (model.opset_imports, *(function.opset_imports for function in functions)):
        _declare(edit, imports, target)
    return found


def convert_function(
    model: Model, edit: Edit, known: Knowledge, function: ir.Function
) -> list[Blocked]:
    """Converts one local function to the opset of the model; see `convert`."""
    versions = scope_versions(model)
    own = {graph: versions[graph] for graph in nested(function.graph)}
    if blocked := _bounds(own.values(), model.opset):
        return [blocked]
    found = _convert_scopes(model, edit, known, own, model.opset)
    _declare(edit, function.opset_imports, model.opset)
    return found


def _declare(edit: Edit, imports: dict[str, int], target: int) -> None:
    if any(imports.get(domain, target) != target for domain in ("", "ai.onnx")):
        declare_opset(edit, imports, target)


def _convert_scopes(
    model: Model, edit: Edit, known: Knowledge, versions: Mapping[ir.Graph, int], target: int
) -> list[Blocked]:
    found: list[Blocked] = []
    made: dict[Any, ir.Value] = {}
    for graph, version in versions.items():
        for node in list(graph) if version and version != target else ():
            if node.op_identifier() in model.core.functions:
                continue
            reason, at = _convert(Site(node, edit, known, target, made), version)
            if reason:
                found.append(Blocked(node, reason, at))
    return found


def _bounds(versions: Iterable[int], target: int) -> Blocked | None:
    newest = min(REVIEWED, defs.onnx_opset_version())
    if target > newest:
        return Blocked(
            None, f"opset {target} is not known here, the newest is {newest}", newest + 1
        )
    for version in sorted(set(versions) - {0}):
        if version > newest:
            return Blocked(None, f"opset {version} is not known here, the newest is {newest}")
        if version < OLDEST < target:
            return Blocked(None, f"opset {version} is older than {OLDEST}, where raising begins")
        if version > target and target < LOWEST:
            return Blocked(None, f"opset {target} is older than {LOWEST}, where lowering ends")
    return None


def _convert(site: Site, version: int) -> tuple[str, int]:
    """Applies the changes between two versions in order; returns what is in the way, and where."""
    if standard_op(site.node) is None:
        return "", 0
    step = 1 if site.target > version else -1
    at = version
    try:
        # Raising passes the boundary of at + 1, lowering that of at itself.
        while at != site.target:
            boundary = at + 1 if step > 0 else at
            (_raise if step > 0 else _lower)(site, boundary)
            at += step
    except Obstacle as obstacle:
        return str(obstacle), at + 1 if step > 0 else at
    return "", 0


def _raise(site: Site, boundary: int) -> None:
    name = site.node.op_type
    old, new = schema(name, boundary - 1), schema(name, boundary)
    if old is None:
        site.refuse(f"ONNX has no {name} in opset {boundary - 1}")
    change = UP.get((name, boundary))
    if change is None:
        if new is None or new.deprecated:
            site.refuse(f"it is gone in opset {boundary}")
        if new.since_version == boundary:
            _check_types(site, lost_types(name, boundary - 1, boundary))
        return
    change(site)


def _lower(site: Site, boundary: int) -> None:
    name = site.node.op_type
    old, new = schema(name, boundary - 1), schema(name, boundary)
    if new is None:
        site.refuse(f"ONNX has no {name} in opset {boundary}")
    if new.since_version != boundary:
        return
    if old is None or old.deprecated:
        site.refuse(f"it came with opset {boundary}")
    change = DOWN.get((name, boundary))
    if change is not None:
        change(site)
    _check_types(site, lost_types(name, boundary, boundary - 1))
    _check_bound_types(site, old)
    _lower_operands(site, old, new)


def _lower_operands(site: Site, old: defs.OpSchema, new: defs.OpSchema) -> None:
    """Drops what the older operator does not have where it says what was the rule there."""
    node = site.node
    if any(value is not None for value in node.inputs[old.max_input :]):
        site.refuse(f"it has more than {old.max_input} inputs")
    site.edit.truncate_inputs(node, old.max_input)
    if len(node.outputs) > old.max_output:
        site.refuse(f"it has more than {old.max_output} outputs")
    for name in set(node.attributes) - set(old.attributes):
        formal = new.attributes.get(name)
        default = formal.default_value if formal is not None else None
        if default is None or not default.name or site.attribute(name) != _plain(default):
            site.refuse(f"its attribute {name} does not exist there")
        site.drop(name)


def _plain(default: Any) -> object:  # noqa: ANN401 - an AttributeProto
    from onnx.helper import get_attribute_value

    value = get_attribute_value(default)
    return value.decode() if isinstance(value, bytes) else value


@lru_cache(maxsize=8192)
def schema(name: str, version: int) -> defs.OpSchema | None:
    """Returns an operator as it is in an opset, None when it does not exist there."""
    try:
        return defs.get_schema(name, version, "")
    except defs.SchemaError:
        return None


@lru_cache(maxsize=8192)
def lost_types(name: str, before: int, after: int) -> tuple[Sequence[frozenset[str]], ...]:
    """Returns the types that inputs and outputs can no longer have after a change of version."""
    first, second = schema(name, before), schema(name, after)
    if first is None or second is None:
        return ((), ())
    pairs = ((first.inputs, second.inputs), (first.outputs, second.outputs))
    return tuple(
        [frozenset(old.types) - frozenset(new.types) for old, new in zip(*pair, strict=False)]
        for pair in pairs
    )


def _check_types(site: Site, lost: tuple[Sequence[frozenset[str]], ...]) -> None:
    node = site.node
    for values, gone in zip((node.inputs, node.outputs), lost, strict=True):
        for index, value in enumerate(values):
            missing = gone[min(index, len(gone) - 1)] if gone else frozenset()
            if value is None or not value.name or not missing:
                continue
            kind = type_of(site, value)
            if not kind:
                site.refuse("an element type is not known, and not all types exist there")
            if kind in missing:
                site.refuse(f"the type {kind} does not exist there")


def type_of(site: Site, value: ir.Value) -> str:
    """Returns the type of a tensor as schemas spell it, empty when it is not known."""
    kind = site.known.dtype(value)
    return "" if kind is None else f"tensor({kind.name.lower()})"


def _check_bound_types(site: Site, old: defs.OpSchema) -> None:
    """Operands that share a type variable in the older operator must share the type."""
    variables = {constraint.type_param_str for constraint in old.type_constraints}
    found: dict[str, str] = {}
    sides = ((site.node.inputs, old.inputs), (site.node.outputs, old.outputs))
    for values, formals in sides:
        for index, value in enumerate(values):
            formal = formals[min(index, len(formals) - 1)] if formals else None
            if value is None or not value.name or formal is None:
                continue
            if formal.type_str not in variables or not formal.is_homogeneous:
                continue
            kind = type_of(site, value) or "unknown"
            if found.setdefault(formal.type_str, kind) != kind:
                site.refuse("its operands are not known to have one type, which they had to")
