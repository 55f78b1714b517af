"""A model in memory: loaded without loss, saved atomically, its weights left where they are."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from onnxcomp.errors import ModelError, UserError
from onnxcomp.ir import envelope, storage
from onnxcomp.ir.backend import ir
from onnxcomp.ir.embedded import map_weights
from onnxcomp.ir.ops import OVERRIDABLE, subgraphs
from onnxcomp.ir.scopes import ir_graphs, proto_graphs
from onnxcomp.signature import Shape, Signature, TensorSpec
from onnxcomp.stages import stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TypeAlias

    from onnxcomp.diagnostics import Diagnostic

    # An `onnx_graphsurgeon.Graph` is one too, but has no types.
    Source: TypeAlias = "str | Path | onnx.ModelProto | ir.Model | Model | Any"

# Structure is read and checked at once, weights are not; only a hostile file takes this long.
LOAD_SECONDS = 120
# Below this size a tensor is cheaper inline than as a reference; shape inference reads small ones.
INLINE_BYTES = 1024
# The first IR version in which an initializer need not be an input, and an input's is a default.
_IR_WITH_DEFAULTS = 4


class Model:
    """An ONNX model that passes read freely and change only through `Edit`.

    Attributes:
        core: The onnx-ir model. Replaced as a whole by passes that work on a protobuf.
        path: The file it was loaded from, None when it came from memory.
        external: Whether its weights came from a separate data file.
        notes: What a reader should know about the file, found while it was checked.
    """

    def __init__(
        self,
        core: ir.Model,
        *,
        path: Path | None = None,
        external: bool = False,
        notes: tuple[Diagnostic, ...] = (),
    ) -> None:
        self.core = core
        self.path = path
        self.external = external
        self.notes = notes

    @classmethod
    def load(cls, source: Source) -> Model:
        """Reads a model from wherever it is; the source is never changed.

        Args:
            source: A path, an `onnx.ModelProto`, an `onnx_ir.Model`, an `onnx_graphsurgeon.Graph`,
                or another `Model`.

        Returns:
            A model of its own. Weights in external data stay on disk and are memory-mapped when read,
            and so do large weights of a file above 64 MB: such files must not be written over in place
            (replacing them, as `save` does, is fine) as long as the model is in use.

        Raises:
            ModelError: If the file or the model is not valid; one line that names the place.
        """
        if isinstance(source, Model):
            return source.copy()
        if isinstance(source, ir.Model):
            return cls(_prepared(_clone(source)))
        if isinstance(source, (str, Path)):
            with stage("loading the model", limit_seconds=LOAD_SECONDS):
                return cls._from_path(Path(source))
        if isinstance(source, onnx.ModelProto):
            return cls._from_proto(source)
        from onnxcomp.ir import surgeon

        if surgeon.is_graph(source):
            return cls._from_proto(surgeon.to_proto(source))
        raise UserError(
            f"cannot read a model from {type(source).__name__}", hint="give a path or a model"
        )

    @classmethod
    def _from_path(cls, path: Path) -> Model:
        from onnxcomp.ir import guard
        from onnxcomp.ir.typecheck import check_types

        proto, left = guard.read_lean(path)
        structure = guard.check_model(proto, path.parent, own=left)
        # Inference wants nodes in order; the runtime checks types of the others when it loads them.
        found = () if structure.needs_sort else check_types(proto)
        notes = (*structure.diagnostics, *found)
        external = storage.has_external(proto, left.location if left else "")
        core = _to_ir(proto, own=True)
        if left is not None:
            map_weights(core, left)
        if external:
            for graph in ir_graphs(core):
                ir.external_data.set_base_dir(graph, path.parent)
        core = _prepared(core, sort=structure.needs_sort, undeclared=structure.undeclared)
        return cls(core, path=path, external=external, notes=notes)

    @classmethod
    def _from_proto(cls, proto: onnx.ModelProto) -> Model:
        from onnxcomp.ir import guard
        from onnxcomp.ir.typecheck import check_types

        if storage.has_external(proto):
            raise ModelError(
                "the ModelProto refers to external data, but not to the folder it lies in",
                hint="load it from its path, or with onnx.load(path) so that the weights are in it",
            )
        structure = guard.check_model(proto, None)
        # Inference wants nodes in order; the runtime checks types of the others when it loads them.
        found = () if structure.needs_sort else check_types(proto)
        notes = (*structure.diagnostics, *found)
        core = _to_ir(proto, own=False)
        core = _prepared(core, sort=structure.needs_sort, undeclared=structure.undeclared)
        return cls(core, notes=notes)

    @property
    def runnable_path(self) -> Path | None:
        """The file it came from, None where the runtime may refuse that because it had to be tidied."""
        tidied = {"MDL101", "MDL102"} & {note.code for note in self.notes}
        return None if tidied else self.path

    @property
    def graph(self) -> ir.Graph:
        """The main graph."""
        return self.core.graph

    @property
    def opset_imports(self) -> dict[str, int]:
        """Version of each operator set that the main graph uses, by domain."""
        return self.core.graph.opset_imports

    @property
    def opset(self) -> int:
        """Version of ONNX's own operator set, 0 when the model does not use it."""
        imports = self.opset_imports
        return imports.get("", imports.get("ai.onnx", 0))

    @property
    def ir_version(self) -> int:
        """Version of the file format."""
        return self.core.ir_version

    def graphs(self) -> Iterator[ir.Graph]:
        """Yields every scope: main graph, function bodies, bodies of If, Loop and Scan."""
        return ir_graphs(self.core)

    def nodes(self) -> Iterator[ir.Node]:
        """Yields the nodes of every scope."""
        return (node for graph in self.graphs() for node in graph)

    def initializers(self) -> Iterator[ir.Value]:
        """Yields the initialized values of every scope."""
        return (value for graph in self.graphs() for value in graph.initializers.values())

    @property
    def nbytes(self) -> int:
        """Size of all weights in bytes, shared tensors counted once per use."""
        sizes = (value.const_value.nbytes for value in self.initializers() if value.const_value)
        return sum(sizes) + sum(tensor.nbytes for tensor in storage.attribute_tensors(self))

    def signature(self) -> Signature:
        """Returns names, types and declared shapes of inputs and outputs, in order."""
        graph = self.graph
        return Signature(
            tuple(
                _spec(value, optional=value.is_initializer())
                for value in graph.inputs
                if not (value.is_initializer() and self.ir_version < _IR_WITH_DEFAULTS)
            ),
            tuple(_spec(value) for value in graph.outputs),
        )

    def copy(self) -> Model:
        """Returns a model with its own structure; the weights are shared, not copied."""
        return Model(_clone(self.core), path=self.path, external=self.external, notes=self.notes)

    def to_proto(self, *, weights: bool = True) -> onnx.ModelProto:
        """Serialises the model.

        Args:
            weights: False leaves out the bytes of tensors above 1 KiB: these become references into
                a file that does not exist, with type and shape. Good for checks and shape inference.

        Returns:
            A new protobuf, which shares nothing with the model.
        """
        swapped = contextlib.nullcontext() if weights else storage.stubs(self, INLINE_BYTES)
        declared = _declared_initializers(self.core)
        with swapped:
            proto = ir.to_proto(self.core)
        _drop_initializer_infos(proto, declared)
        envelope.put_back(self.core, proto)
        return proto

    def save(
        self, path: str | Path, *, in_place: bool = False, external: bool | None = None
    ) -> None:
        """Writes the model atomically: the file is complete or absent, whatever happens.

        Args:
            path: Where to. External weights go to `<path>.data` beside it.
            in_place: Allow writing over the file that the model was loaded from.
            external: Put weights into a separate file; by default as they came in, and always above
                1 GiB, because a protobuf ends at 2 GiB.

        Raises:
            UserError: If the place cannot be written, or is the input and `in_place` is not given.
        """
        storage.save(self, Path(path), in_place=in_place, external=external)


def core_from_proto(proto: onnx.ModelProto) -> ir.Model:
    """Returns the IR of a protobuf that nobody else uses; it may be changed on the way."""
    return _prepared(_to_ir(proto, own=True))


def _to_ir(proto: onnx.ModelProto, *, own: bool) -> ir.Model:
    """Turns a protobuf into an IR; `own` says that the protobuf may be changed."""
    kept = envelope.Envelope()
    if envelope.needs_envelope(proto):
        if not own:
            copied = onnx.ModelProto()
            copied.CopyFrom(proto)
            proto = copied
        kept = envelope.take_out(proto)
    try:
        core = ir.from_proto(proto)
    except (ValueError, TypeError, NotImplementedError, RuntimeError, KeyError) as error:
        raise ModelError(f"the model cannot be represented: {_first_line(error)}") from error
    for graph in ir_graphs(core):
        infos = {info.name for info in proto.graph.value_info} if graph is core.graph else set()
        graph.meta["onnxcomp.declared"] = infos & set(graph.initializers)
    for graph, graph_proto in zip(ir_graphs(core), proto_graphs(proto), strict=True):
        envelope.keep_passed_through(graph, graph_proto)
    envelope.attach(kept, core)
    return core


def _prepared(
    core: ir.Model, *, sort: bool | None = None, undeclared: Iterable[str] = ()
) -> ir.Model:
    """Marks overridable initializers, sorts what is unsorted, makes node names unique.

    Domains that the file uses without import are declared; there is only one version of those.
    """
    core.graph.opset_imports.update(dict.fromkeys(sorted(undeclared), 1))
    for graph in ir_graphs(core):
        is_main = graph is core.graph
        for value in graph.inputs:
            if value.is_initializer() and (core.ir_version >= _IR_WITH_DEFAULTS or not is_main):
                value.meta[OVERRIDABLE] = True
        _make_names_unique(graph)
    if sort is None:
        sort = any(_is_unsorted(graph, set()) for graph in (core.graph, *_bodies(core)))
    if sort:
        try:
            core.graph.sort()
            for function in core.functions.values():
                function.sort()
        except ValueError as error:
            raise ModelError(f"the graph has a cycle: {_first_line(error)}") from error
    return core


def _bodies(core: ir.Model) -> list[ir.Graph]:
    return [function.graph for function in core.functions.values()]


def _is_unsorted(graph: ir.Graph, outer: set[ir.Value]) -> bool:
    """Whether some node, here or in a graph inside, reads a value that is made only later."""
    seen = outer | set(graph.inputs) | set(graph.initializers.values())
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in seen and value.producer() is not None:
                return True
        if any(_is_unsorted(body, seen) for body in subgraphs(node)):
            return True
        seen.update(node.outputs)
    return False


def _make_names_unique(graph: ir.Graph) -> None:
    taken: set[str] = set()
    repeated: list[ir.Node] = []
    for node in graph:
        if node.name and node.name in taken:
            repeated.append(node)
        elif node.name:
            taken.add(node.name)
    for node in repeated:
        number = 2
        while f"{node.name}_{number}" in taken:
            number += 1
        node.name = f"{node.name}_{number}"
        taken.add(node.name)


def _clone(core: ir.Model) -> ir.Model:
    try:
        cloned = core.clone()
    except (ValueError, TypeError, KeyError, RuntimeError):
        # Values without a producer (sparse initializers) cannot be cloned; the protobuf way can.
        proto = ir.to_proto(core)
        envelope.put_back(core, proto)
        return _to_ir(proto, own=True)
    cloned.meta.update(core.meta)  # onnx-ir copies that of graphs, nodes and values only
    return cloned


def _declared_initializers(core: ir.Model) -> list[set[str]]:
    return [graph.meta.get("onnxcomp.declared", set()) for graph in ir_graphs(core)]


def _drop_initializer_infos(proto: onnx.ModelProto, declared: list[set[str]]) -> None:
    """Removes the type entries of initializers that onnx-ir adds although tensors carry their type."""
    for graph, kept in zip(proto_graphs(proto), declared, strict=True):
        if not isinstance(graph, onnx.GraphProto) or not graph.value_info:
            continue
        drop = {tensor.name for tensor in graph.initializer} - kept
        infos = [info for info in graph.value_info if info.name not in drop]
        if len(infos) != len(graph.value_info):
            copies = [onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in infos]
            graph.ClearField("value_info")
            graph.value_info.extend(copies)


def _spec(value: ir.Value, *, optional: bool = False) -> TensorSpec:
    dtype: Any = None
    if isinstance(value.type, ir.TensorType) and value.type.dtype != ir.DataType.UNDEFINED:
        dtype = value.type.dtype.numpy()
    return TensorSpec(value.name or "", dtype, shape_of(value.shape), optional=optional)


def shape_of(shape: ir.Shape | None) -> Shape | None:
    """Returns a shape as plain numbers, symbols and None; real files declare -1 for unknown."""
    if shape is None:
        return None
    return tuple(
        (dim if dim >= 0 else None) if isinstance(dim, int) else dim.value or None for dim in shape
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
