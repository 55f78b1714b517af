"""Split, Slice and Concat that undo each other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

from onnxcomp.ir.ops import (
    attribute,
    following,
    has_reference_attribute,
    is_op,
    producer_of,
)
from onnxcomp.ir.ops import single_use as only_reader
from onnxcomp.rules import NOTHING, Match, Miss
from onnxcomp_passes.simplify.support.base import (
    OpsetFloor,
    aliasable,
    bypass,
    is_used,
    shapes_of,
    sweep,
    turn_into_gather,
)
from onnxcomp_passes.simplify.support.dims import normalized
from onnxcomp_passes.simplify.support.ranges import (
    Part,
    insert_slice,
    insert_split,
    part_of,
    sliced,
    split_part,
)

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit, ir

# Opset 10 made the ranges of Slice inputs, opset 13 the sizes of Split.
_SLICE_INPUTS, _SPLIT_INPUTS = 10, 13
# A Gather copies whole blocks; with smaller ones it is slower than two copies.
_SMALLEST_BLOCK = 32


@dataclass(frozen=True)
class Pieces:
    """Slices that together are all of a tensor, in order."""

    slices: list[ir.Node]
    parts: list[Part]
    before: ir.Node
    shapes: ShapeMap


class SlicesToSplit:
    """Slices of one tensor that together are all of it, each element once, are one Split."""

    name = "slices made a split"
    ops = frozenset({"Slice"})

    def match(self, node: ir.Node, facts: Facts) -> Match[Pieces] | Miss:
        """Finds the others."""
        source, graph = node.inputs[0], node.graph
        if source is None or facts.get(OpsetFloor()) < _SPLIT_INPUTS or graph is None:
            return NOTHING
        shapes = shapes_of(facts)
        own = sliced(node, shapes)
        if own is None or own.is_whole or has_reference_attribute(node):
            return NOTHING
        found: dict[int, tuple[ir.Node, Part]] = {}
        for usage in source.uses():
            other = usage.node
            if not is_op(other, "Slice") or usage.idx or other.graph is not graph:
                continue
            part = sliced(other, shapes)
            if (
                part is not None
                and part.axis == own.axis
                and found.setdefault(part.start, (other, part)) != (other, part)
            ):
                return NOTHING
        ordered = [found[start] for start in sorted(found)]
        parts = [part for _, part in ordered]
        if parts[0].start or parts[-1].end != own.size:
            return NOTHING
        if any(late.start != early.end for early, late in pairwise(parts)):
            return NOTHING
        slices = [other for other, _ in ordered]
        maker = source.producer()
        inside = maker is not None and maker.graph is graph
        place = following(graph, maker) if maker is not None and inside else next(iter(graph))
        return Match(node, Pieces(slices, parts, place or slices[0], shapes))

    def apply(self, match: Match[Pieces], edit: Edit) -> None:
        """Splits."""
        found = match.found
        outputs = insert_split(edit, found.parts, found.before, found.shapes)
        for node, output in zip(found.slices, outputs, strict=True):
            inputs = list(node.inputs)
            edit.replace(node.outputs[0], output)
            edit.remove(node)
            sweep(edit, *inputs)


@dataclass(frozen=True)
class Joined:
    """What a Concat can read instead: values, and parts that are to be cut."""

    items: list[ir.Value | Part]
    shapes: ShapeMap


class JoinPieces:
    """Neighbouring pieces of a tensor that a Concat puts together are one piece."""

    name = "pieces put together again"
    ops = frozenset({"Concat"})

    def match(self, node: ir.Node, facts: Facts) -> Match[Joined] | Miss:
        """Finds neighbours whose makers nobody else needs, or that make up a whole."""
        shapes = shapes_of(facts)
        joined: list[ir.Value | Part] = []
        for run in runs_of(node, shapes):
            whole = _whole(run)
            if whole is not None and _pays(node, run, whole, facts):
                joined.append(whole.source if whole.is_whole else whole)
            else:
                joined.extend(value for value, _ in run)
        return (
            Match(node, Joined(joined, shapes)) if 0 < len(joined) < len(node.inputs) else NOTHING
        )

    def apply(self, match: Match[Joined], edit: Edit) -> None:
        """Reads the larger pieces."""
        node, name = match.node, f"{match.node.outputs[0].name}_piece"
        values = [
            insert_slice(edit, item, node, name, match.found.shapes)
            if isinstance(item, Part)
            else item
            for item in match.found.items
        ]
        read_instead(edit, node, values)


def read_instead(edit: Edit, node: ir.Node, values: list[ir.Value]) -> None:
    """Makes a Concat read other values; with a single one it goes."""
    old = list(node.inputs)
    # A Split that loses readers may be a Slice now.
    edit.touched.extend(
        maker for value in old if value is not None and (maker := value.producer()) is not None
    )
    if len(values) == 1 and aliasable(node.outputs[0], values[0]):
        bypass(edit, node, values[0])
        return
    for index, value in enumerate(values):
        edit.set_input(node, index, value)
    edit.truncate_inputs(node, len(values))
    sweep(edit, *old)


@dataclass(frozen=True)
class Coarser:
    """A Split into fewer parts, and the outputs of the old one that each of them holds."""

    split: ir.Node
    parts: list[Part]
    held: list[list[ir.Value]]
    shapes: ShapeMap


class CoarserSplit:
    """Parts of a Split that one Concat puts together again in order are not cut at all."""

    name = "splits made coarser"
    ops = frozenset({"Concat"})

    def match(self, node: ir.Node, facts: Facts) -> Match[Coarser] | Miss:
        """Finds neighbours that nobody else reads."""
        shapes = shapes_of(facts)
        if facts.get(OpsetFloor()) < _SPLIT_INPUTS:
            return NOTHING
        for run in runs_of(node, shapes):
            split = producer_of(run[0][0], "Split")
            if len(run) < 2 or split is None or split.graph is not node.graph:
                continue
            if all(value.producer() is split and only_reader(value) is node for value, _ in run):
                found = _coarser(split, [value for value, _ in run], shapes)
                if found is not None:
                    return Match(node, found)
        return NOTHING

    def apply(self, match: Match[Coarser], edit: Edit) -> None:
        """Splits into fewer parts."""
        node, found = match.node, match.found
        outputs = insert_split(edit, found.parts, found.split, found.shapes)
        values: list[ir.Value] = []
        for new, held in zip(outputs, found.held, strict=True):
            if len(held) == 1:
                edit.replace(held[0], new)
        instead = {
            held[0]: new for new, held in zip(outputs, found.held, strict=True) if len(held) > 1
        }
        skipped = {value for held in found.held if len(held) > 1 for value in held[1:]}
        for value in node.inputs:
            if value is not None and value not in skipped:
                values.append(instead.get(value, value))
        read_instead(edit, node, values)
        sweep(edit, *found.split.outputs)


def _coarser(split: ir.Node, run: list[ir.Value], shapes: ShapeMap) -> Coarser | None:
    parts: list[Part] = []
    held: list[list[ir.Value]] = []
    for output in split.outputs:
        part = split_part(split, output, shapes)
        if part is None:
            return None
        if output in run[1:]:
            parts[-1] = replace(parts[-1], end=part.end)
            held[-1].append(output)
        else:
            parts.append(part)
            held.append([output])
    return Coarser(split, parts, held, shapes)


Run = list[tuple["ir.Value", "Part | None"]]


def runs_of(node: ir.Node, shapes: ShapeMap) -> list[Run]:
    """Returns the inputs of a Concat, neighbouring pieces of one tensor together."""
    rank = shapes.rank(node.outputs[0])
    axes = None if rank is None else normalized([attribute(node, "axis", 0)], rank)
    runs: list[Run] = []
    if axes is None or has_reference_attribute(node) or len(node.inputs) < 2:
        return runs
    axis = axes[0]
    for value in node.inputs:
        if value is None:
            continue
        part = part_of(value, shapes)
        part = part if part is not None and part.axis == axis else None
        last = runs[-1][-1][1] if runs else None
        if part is not None and last is not None and part.continues(last):
            runs[-1].append((value, part))
        else:
            runs.append([(value, part)])
    return runs


def _whole(run: Run) -> Part | None:
    first, last = run[0][1], run[-1][1]
    if len(run) < 2 or first is None or last is None:
        return None
    return Part(first.source, first.axis, first.start, last.end, first.size)


def _pays(node: ir.Node, run: Run, whole: Part, facts: Facts) -> bool:
    """Whether there are fewer nodes then."""
    if whole.is_whole:
        return True
    makers = {value.producer() for value, _ in run}
    if facts.get(OpsetFloor()) < _SLICE_INPUTS or None in makers:
        return False
    gone = sum(
        maker is not None
        and all(
            only_reader(value) is node if value in {item for item, _ in run} else not is_used(value)
            for value in maker.outputs
        )
        for maker in makers
    )
    # A Concat of nothing else becomes that Slice.
    return gone > 1 or (gone == 1 and len(run) == len(node.inputs))


class SplitOfConcat:
    """A Split of a Concat at the places where it was put together gives back what there was."""

    name = "splits at the seams removed"
    ops = frozenset({"Split"})

    def match(self, node: ir.Node, facts: Facts) -> Match[list[list[ir.Value]]] | Miss:
        """Finds what each output is made of."""
        concat, shapes = producer_of(node.inputs[0], "Concat"), shapes_of(facts)
        rank = shapes.rank(node.inputs[0])
        if concat is None or rank is None or has_reference_attribute(concat):
            return NOTHING
        if concat.graph is not node.graph or has_reference_attribute(node):
            return NOTHING
        axes = normalized([attribute(node, "axis", 0), attribute(concat, "axis", 0)], rank)
        if axes is None or axes[0] != axes[1]:
            return NOTHING
        groups = _groups(node, concat, axes[0], shapes)
        if groups is None:
            return NOTHING
        alone = only_reader(concat.outputs[0]) is node
        made = sum(len(group) > 1 for group in groups)
        pairs = zip(node.outputs, groups, strict=True)
        if made > alone or not all(
            len(group) > 1 or aliasable(output, group[0]) for output, group in pairs
        ):
            return NOTHING
        return Match(node, groups)

    def apply(self, match: Match[list[list[ir.Value]]], edit: Edit) -> None:
        """Reads what was put together."""
        node = match.node
        axis, old = attribute(node, "axis", 0), list(node.inputs)
        for output, group in zip(list(node.outputs), match.found, strict=True):
            value = group[0]
            if len(group) > 1:
                value = edit.insert(
                    "Concat",
                    group,
                    before=node,
                    outputs=[f"{output.name}_joined"],
                    attributes={"axis": axis},
                    like=output,
                ).outputs[0]
            edit.replace(output, value)
        edit.remove(node)
        sweep(edit, *old)


def _groups(
    split: ir.Node, concat: ir.Node, axis: int, shapes: ShapeMap
) -> list[list[ir.Value]] | None:
    """Returns the inputs of a Concat that each output of a Split is made of."""
    inputs = [value for value in concat.inputs if value is not None]
    groups: list[list[ir.Value]] = []
    for output in split.outputs:
        part = split_part(split, output, shapes)
        if part is None:
            return None
        left, group = part.end - part.start, list[Any]()
        while left > 0 and inputs:
            value = inputs.pop(0)
            shape = shapes.shape(value)
            size = None if shape is None or axis >= len(shape) else shape[axis]
            if not isinstance(size, int):
                return None
            group.append(value)
            left -= size
        if left or not group:
            return None
        groups.append(group)
    return None if inputs else groups


class OneOfSplit:
    """A Split of which one output is read is a Slice: the others need not be copied."""

    name = "splits of one part made a slice"
    ops = frozenset({"Split"})

    def match(self, node: ir.Node, facts: Facts) -> Match[tuple[ir.Value, Part, ShapeMap]] | Miss:
        """Finds the output."""
        used = [value for value in node.outputs if is_used(value)]
        if len(node.outputs) < 2 or len(used) != 1 or has_reference_attribute(node):
            return NOTHING
        shapes = shapes_of(facts)
        part = split_part(node, used[0], shapes)
        if part is None or facts.get(OpsetFloor()) < _SLICE_INPUTS:
            return NOTHING
        return Match(node, (used[0], part, shapes))

    def apply(self, match: Match[tuple[ir.Value, Part, ShapeMap]], edit: Edit) -> None:
        """Slices."""
        node, (value, part, shapes) = match.node, match.found
        made = insert_slice(edit, part, node, f"{value.name}_part", shapes)
        old = list(node.inputs)
        edit.replace(value, made)
        edit.remove(node)
        sweep(edit, *old)


class ReorderPieces:
    """All pieces of a tensor, put together in another order, are a Gather along the axis."""

    name = "pieces in another order gathered"
    ops = frozenset({"Concat"})

    def match(self, node: ir.Node, facts: Facts) -> Match[tuple[ir.Value, int, list[int]]] | Miss:
        """Finds where each element goes, if whole blocks do."""
        shapes = shapes_of(facts)
        found = [part for run in runs_of(node, shapes) for _, part in run]
        parts = [part for part in found if part is not None]
        shape = shapes.shape(parts[0].source) if parts else None
        if shape is None or len(parts) != len(found) or len({part.source for part in parts}) != 1:
            return NOTHING
        axis = parts[0].axis
        inner = [dim for dim in shape[axis + 1 :] if isinstance(dim, int)]
        if len(inner) != len(shape) - axis - 1 or prod(inner) < _SMALLEST_BLOCK:
            return NOTHING
        places = [place for part in parts for place in range(part.start, part.end)]
        # A Slice or a Split must go for it, and what copies more than there is stays.
        if len(places) > parts[0].size or not _only_here(node):
            return NOTHING
        return Match(node, (parts[0].source, axis, places))

    def apply(self, match: Match[tuple[ir.Value, int, list[int]]], edit: Edit) -> None:
        """Gathers."""
        turn_into_gather(edit, match.node, *match.found)


def _only_here(node: ir.Node) -> bool:
    """Whether nobody but a node reads what the makers of its inputs make."""
    return all(
        maker is not None
        and all(
            not value.is_graph_output() and all(usage.node is node for usage in value.uses())
            for value in maker.outputs
        )
        for maker in (None if value is None else value.producer() for value in node.inputs)
    )
