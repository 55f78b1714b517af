"""The cheapest way to split a graph in two."""

from __future__ import annotations

from collections import deque

_EPSILON = 1e-12


class Cut:
    """A flow network between a source side and a sink side, solved by Dinic's algorithm.

    Vertices are numbers from `vertex()`; `SOURCE` and `SINK` are there from the start.
    """

    SOURCE, SINK = 0, 1

    def __init__(self) -> None:
        self._edges: list[list[int]] = [[], []]
        self._heads: list[int] = []
        self._room: list[float] = []

    def vertex(self) -> int:
        """Adds a vertex."""
        self._edges.append([])
        return len(self._edges) - 1

    def charge(self, source: int, sink: int, cost: float) -> None:
        """Costs `cost` when `source` ends on the source side and `sink` on the sink side."""
        if cost <= 0.0:
            return
        for tail, head, room in ((source, sink, cost), (sink, source, 0.0)):
            self._edges[tail].append(len(self._heads))
            self._heads.append(head)
            self._room.append(room)

    def source_side(self) -> set[int]:
        """Returns the vertices on the source side of the cheapest split."""
        while True:
            level = self._levels()
            if level[self.SINK] < 0:
                return {vertex for vertex, depth in enumerate(level) if depth >= 0}
            place = [0] * len(self._edges)
            while self._push(level, place):
                pass

    def _levels(self) -> list[int]:
        level = [-1] * len(self._edges)
        level[self.SOURCE] = 0
        todo = deque([self.SOURCE])
        while todo:
            vertex = todo.popleft()
            for edge in self._edges[vertex]:
                head = self._heads[edge]
                if level[head] < 0 and self._room[edge] > _EPSILON:
                    level[head] = level[vertex] + 1
                    todo.append(head)
        return level

    def _push(self, level: list[int], place: list[int]) -> float:
        """Sends flow along one path of rising levels; returns how much, 0 when there is none left."""
        path: list[int] = []
        vertex = self.SOURCE
        while vertex != self.SINK:
            edges = self._edges[vertex]
            while place[vertex] < len(edges):
                edge = edges[place[vertex]]
                head = self._heads[edge]
                if self._room[edge] > _EPSILON and level[head] == level[vertex] + 1:
                    path.append(edge)
                    vertex = head
                    break
                place[vertex] += 1
            else:
                if not path:
                    return 0.0
                vertex = self._heads[path.pop() ^ 1]
                place[vertex] += 1
        amount = min(self._room[edge] for edge in path)
        for edge in path:
            self._room[edge] -= amount
            self._room[edge ^ 1] += amount
        return amount
