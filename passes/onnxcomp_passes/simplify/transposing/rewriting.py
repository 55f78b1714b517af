"""Moves operators into their other layout, and puts Transposes where the two layouts meet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp_passes.simplify.support.base import is_used, sweep
from onnxcomp_passes.simplify.support.linear import store
from onnxcomp_passes.simplify.transposing.orders import Order, inverse

if TYPE_CHECKING:
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit, ir
    from onnxcomp_passes.simplify.transposing.regions import Region


class Rewriting:
    """One change of a region; `run` makes it."""

    def __init__(self, region: Region, chosen: set[ir.Node], edit: Edit, shapes: ShapeMap) -> None:
        self._region = region
        self._chosen = chosen
        self._edit = edit
        self._shapes = shapes
        # What holds a tensor in a layout.
        self._there: dict[tuple[ir.Value, int], ir.Value] = {}

    def run(self) -> None:
        """Changes the graph; what nobody reads any more goes."""
        region = self._region
        for value, (layout, _) in region.layouts.items():
            if value not in region.roots and self._stays(value):
                self._there[value, layout] = value
        for node in self._in_order():
            self._move(node)
        for value in [*region.layouts]:
            self._serve(value)
        for node in reversed([*self._chosen, *region.turns]):
            sweep(self._edit, *node.outputs)

    def _in_order(self) -> list[ir.Node]:
        """Returns the operators to move, each behind those whose tensors it reads."""
        done: dict[ir.Node, None] = {}
        for end in self._chosen:
            waiting = [end]
            while waiting:
                before = [node for node in self._before(waiting[-1]) if node not in done]
                if before:
                    waiting += before
                else:
                    done[waiting.pop()] = None
        return [*done]

    def _before(self, node: ir.Node) -> list[ir.Node]:
        values = [node.inputs[index] for index in self._region.moves[node].inputs]
        makers = [self._region.root(value).producer() for value in values if value is not None]
        return [maker for maker in makers if maker is not None and maker in self._chosen]

    def _stays(self, value: ir.Value) -> bool:
        """Whether a value is made as before."""
        region = self._region
        while value in region.roots:
            value = region.roots[value]
        maker = value.producer()
        return maker is None or maker not in self._chosen

    def _in_layout(self, value: ir.Value, layout: int) -> ir.Value:
        """Returns the tensor that a value is in a layout; turns it, behind its maker, if need be."""
        root = self._region.root(value)
        found = self._there.get((root, layout))
        if found is None:
            source = self._there[root, 1 - layout]
            own, order = self._region.layouts[root]
            found = self._turn(source, order if own != layout else inverse(order), root)
            self._there[root, layout] = found
        return found

    def _turn(self, source: ir.Value, order: Order, root: ir.Value) -> ir.Value:
        maker, graph = source.producer(), self._region.graph
        here = maker is not None and maker.graph is graph
        node = self._edit.insert(
            "Transpose",
            [source],
            after=maker if here else None,
            before=None if here else next(iter(graph)),
            outputs=[f"{root.name}_transposed"],
            attributes={"perm": list(order)},
        )
        self._describe(node.outputs[0], source, order)
        return node.outputs[0]

    def _describe(self, value: ir.Value, like: ir.Value, order: Order | None) -> None:
        """Notes type and shape of a new value: those of another one, in another order."""
        shape, dtype = self._shapes.shape(like), self._shapes.dtype(like)
        if shape is not None and order is not None:
            shape = tuple(shape[axis] for axis in order)
        self._shapes.record(value, dtype, shape)
        if dtype is not None:
            known = shape and [dim if isinstance(dim, int) else None for dim in shape]
            self._edit.set_type(value, dtype, known)

    def _move(self, node: ir.Node) -> None:
        region, edit = self._region, self._edit
        move, layout = region.moves[node], region.layout(node)
        inputs = list(node.inputs)
        for index in move.inputs:
            value = inputs[index]
            assert value is not None
            inputs[index] = self._in_layout(value, 1 - layout)
        inputs += [None] * (max(move.constants, default=0) + 1 - len(inputs))
        for index, make in move.constants.items():
            old = inputs[index]
            wish = f"{node.outputs[0].name}_operand" if old is None else f"{old.name}"
            inputs[index] = edit.initializer(make(), name=wish, graph=region.graph)
        made = edit.insert(
            node.op_type,
            inputs,
            before=node,
            domain=node.domain,
            outputs=[f"{value.name}_moved" if value.name else "" for value in node.outputs],
            attributes={**node.attributes, **move.attributes},
            name=node.name,
        )
        for (reader, index), make in move.weights.items():
            store(edit, reader, index, make(), "weight")
        self._hand_on(node, made)

    def _hand_on(self, node: ir.Node, made: ir.Node) -> None:
        move, layout = self._region.moves[node], self._region.layout(node)
        for index, (old, new) in enumerate(zip(node.outputs, made.outputs, strict=True)):
            order = move.outputs.get(index)
            self._describe(new, old, order)
            if order is not None:
                self._there[self._region.root(old), 1 - layout] = new
            elif move.permuted is not None:
                self._edit.replace(old, self._picked(new, move.permuted, made, old))
            elif is_used(old):
                self._edit.replace(old, new)

    def _picked(self, sizes: ir.Value, order: Order, after: ir.Node, like: ir.Value) -> ir.Value:
        """Sizes in the order that readers of a Shape expect."""
        import numpy as np

        name, graph = f"{like.name}_order", self._region.graph
        places = self._edit.initializer(np.array(order, np.int64), name=name, graph=graph)
        node = self._edit.insert(
            "Gather", [sizes, places], after=after, outputs=[f"{like.name}_sizes"], like=like
        )
        self._describe(node.outputs[0], like, None)
        return node.outputs[0]

    def _serve(self, value: ir.Value) -> None:
        """Gives everybody who still reads a value what it was."""
        if not self._is_wanted(value):
            return
        layout = self._region.layouts[value][0]
        if self._stays(value):
            # A Transpose that is there already, and still wanted, is as good as a new one.
            self._there.setdefault((self._region.root(value), layout), value)
        new = self._in_layout(value, layout)
        if new is not value:
            self._edit.replace(value, new)

    def _is_wanted(self, value: ir.Value) -> bool:
        gone = self._chosen
        turns = self._region.turns
        return value.is_graph_output() or any(
            usage.node not in gone and usage.node not in turns for usage in value.uses()
        )
