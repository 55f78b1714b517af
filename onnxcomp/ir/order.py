"""The order of nodes in a scope, changed through `Edit`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxcomp.ir.backend import ir
    from onnxcomp.ir.edit import Edit


def sort(edit: Edit, graph: ir.Graph) -> None:
    """Puts every node behind what it reads; nodes that are in order already keep their places.

    For passes that make several readers wait for one node: none of the old places is behind all its
    inputs and before all its readers then.

    Raises:
        ValueError: Nodes wait for each other.
    """
    before = list(graph)
    graph.sort()
    # Nodes that are in the list already move to its end, one after the other.
    edit.record(lambda: graph.extend(before))
