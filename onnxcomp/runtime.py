"""The one door to onnxruntime: sessions, runs, the provider's optimised graph, time per node."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import onnx
import onnxruntime as ort

from onnxcomp import elements
from onnxcomp.errors import (
    ModelError,
    RuntimeUnavailableError,
    SamplesError,
    TimeLimitError,
    UserError,
    quoted,
)
from onnxcomp.feeds import check_feeds
from onnxcomp.handover import Handover, hand_over
from onnxcomp.node_times import NodeRun, read_profile
from onnxcomp.providers import (
    DEVICE_PROVIDERS,
    PROVIDERS,
    clear_line,
    full_name,
    says_not_supported,
    short_name,
)
from onnxcomp.signature import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from onnxcomp.handover import Source

Optimization = Literal["disable", "basic", "extended", "all"]

_LEVELS = {
    "disable": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_FATAL_ONLY = 4
_TAKE_FLOAT8_FOR_INT8 = ["ReluQuantRewrite"]
_ORT = ort.capi.onnxruntime_pybind11_state
# The runtime's exceptions have no common base; the binding layer adds ValueError and RuntimeError.
_ORT_ERRORS: tuple[type[Exception], ...] = (
    *(
        kind
        for kind in vars(_ORT).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
    RuntimeError,
    ValueError,
)

# The environment's own logger writes to stderr before any session has a say.
ort.set_default_logger_severity(_FATAL_ONLY)
ort.disable_telemetry_events()


def runtime_version() -> str:
    """Returns the version of onnxruntime."""
    return str(ort.__version__)


@functools.cache
def newest_opset() -> int:
    """Returns the newest opset that the runtime takes, found by trying."""
    for version in range(onnx.defs.onnx_opset_version(), 0, -1):
        text = f'<ir_version: 8, opset_import: ["": {version}]> g (bool x) => (bool y) {{ y = Not (x) }}'
        model = onnx.parser.parse_model(text)
        try:
            Session.open(model).close()
        except UserError:
            continue
        return version
    return 1


def available_providers() -> tuple[str, ...]:
    """Returns the short names of the execution providers in this build, the fastest first."""
    return tuple(short_name(name) for name in ort.get_available_providers())


def require_provider(provider: str) -> str:
    """Returns the runtime's full name of a provider.

    Raises:
        RuntimeUnavailableError: If it is not in this build; the message names those that are.
    """
    return full_name(provider, ort.get_available_providers())


class Session:
    """A model loaded by onnxruntime, ready to run. Also a context manager.

    Attributes:
        inputs: What the model takes, in order. Inputs with a default are marked optional.
        outputs: What it gives: its own outputs, then the extra ones asked for.
        provider: Short name of the execution provider.
    """

    def __init__(self, session: ort.InferenceSession, provider: str, keep_alive: object) -> None:
        self._session: ort.InferenceSession | None = session
        self._keep_alive = keep_alive
        self.provider = provider
        defaults = session.get_overridable_initializers()
        self.inputs = (
            *(_spec(arg) for arg in session.get_inputs()),
            *(_spec(arg, optional=True) for arg in defaults),
        )
        self.outputs = tuple(_spec(arg) for arg in session.get_outputs())
        self._input_types = {arg.name: arg.type for arg in (*session.get_inputs(), *defaults)}
        self._output_types = {arg.name: arg.type for arg in session.get_outputs()}

    @classmethod
    def open(
        cls,
        model: Source,
        *,
        provider: str = "cpu",
        threads: int = 1,
        provider_options: Mapping[str, str] | None = None,
        optimization: Optimization = "all",
        outputs: Sequence[str] | None = None,
        config: Mapping[str, str] | None = None,
        arena: bool = True,
    ) -> Self:
        """Loads a model.

        Args:
            model: A path, serialised bytes, an `onnx.ModelProto` or a `Model`. Weights are not copied
                where the runtime allows that; models above 2 GiB work.
            provider: `cpu`, `cuda`, `tensorrt`, `openvino`, `coreml`, `dml`, `qnn`, `webgpu`, or a name
                of the runtime's own. Nodes that it does not take run on the CPU.
            threads: Threads of one operator; 0 leaves the number to the runtime.
            provider_options: Options of the provider, as the runtime documents them.
            optimization: How far the runtime may rewrite the graph.
            outputs: Values of the main graph to give out besides the model's outputs.
            config: Session configuration entries of the runtime.
            arena: Keep memory for the next run; without it a run takes a third less, and more time to
                get it.

        Raises:
            RuntimeUnavailableError: If the provider is not there, or this build of the runtime lacks an
                operator, an opset or a type that the model needs.
            ModelError: If the model is not valid.
        """
        full = require_provider(provider)
        options = _options(threads, optimization, config)
        options.enable_cpu_mem_arena = options.enable_mem_pattern = options.enable_mem_reuse = arena
        given = hand_over(model, outputs or ())
        return cls(*_create(given, options, full, provider_options))

    def run(
        self,
        feeds: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None = None,
        *,
        limit_seconds: float | None = None,
    ) -> dict[str, Any]:
        """Runs the model once.

        Args:
            feeds: An array for each input.
            outputs: Names of the outputs to compute, all by default.
            limit_seconds: Time after which the runtime is told to stop; it does between two nodes.

        Returns:
            Arrays by output name (a list or a dict where the output is a sequence or a map).

        Raises:
            SamplesError: If the feeds do not fit the inputs.
            RuntimeUnavailableError: If the runtime fails while it runs; the message names the node.
            TimeLimitError: If it took longer than the limit.
        """
        session = self._alive()
        check_feeds(self.inputs, feeds)
        names = list(self._output_types) if outputs is None else list(outputs)
        for name in names:
            if name not in self._output_types:
                raise UserError(f"the model has no output {quoted(name)}")
        call = self._call(session, feeds, names)
        with _limited(limit_seconds) as run_options:
            try:
                results = call(run_options)
                return dict(zip(names, map(_to_numpy, results), strict=True))
            except _ORT_ERRORS as error:
                if run_options is not None and run_options.terminate:
                    raise TimeLimitError(f"a run took more than {limit_seconds:g} s") from error
                raise _run_error(error) from error

    def prepare(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], Any]:
        """Returns a call that runs the model on these feeds, for timing.

        On a GPU the inputs are copied to the device once, the outputs stay there, and each call waits
        until the device has finished.
        """
        self.run(feeds)
        session = self._alive()
        if self.provider in DEVICE_PROVIDERS:
            return self._bound(session, feeds)
        return self._call(session, feeds, list(self._output_types))

    def close(self) -> None:
        """Gives back the runtime's memory; the session cannot be used afterwards."""
        self._session = None
        self._keep_alive = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _alive(self) -> ort.InferenceSession:
        if self._session is None:
            raise UserError("the session is closed")
        return self._session

    def _call(
        self, session: ort.InferenceSession, feeds: Mapping[str, np.ndarray], names: list[str]
    ) -> Callable[..., Any]:
        """Returns the call for these feeds; only types that numpy lacks take the detour by OrtValue."""
        if all(elements.is_native(self._output_types[name]) for name in names):
            given = {name: self._given(name, array) for name, array in feeds.items()}
            return functools.partial(session.run, names, given)
        values = {name: self._value(name, array) for name, array in feeds.items()}
        return functools.partial(session.run_with_ort_values, names, values)

    def _given(self, name: str, array: np.ndarray) -> np.ndarray | ort.OrtValue:
        return array if elements.is_native(self._input_types[name]) else self._value(name, array)

    def _value(self, name: str, array: np.ndarray) -> ort.OrtValue:
        code = elements.element_code(self._input_types[name])
        if code is None or code == onnx.TensorProto.STRING:
            return ort.OrtValue.ortvalue_from_numpy(array)
        return _ort_value(elements.runtime_buffer(array, code), code)

    def _bound(
        self, session: ort.InferenceSession, feeds: Mapping[str, np.ndarray]
    ) -> Callable[[], Any]:
        binding = session.io_binding()
        for name, array in feeds.items():
            on_device = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), "cuda", 0)
            binding.bind_ortvalue_input(name, on_device)
        for name in self._output_types:
            binding.bind_output(name, "cuda", 0)

        def run() -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        binding.synchronize_inputs()
        return run


def optimized_model(
    model: Source,
    *,
    provider: str = "cpu",
    level: Optimization = "all",
    weights: bool = True,
    config: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Returns the graph that a provider really runs, as the runtime rewrote it.

    Args:
        model: The model, as for `Session.open`.
        provider: The execution provider whose rewrites are wanted.
        level: How far the runtime may rewrite the graph.
        weights: False leaves tensors above 1 KiB without their bytes, which is much faster.
        config: Session configuration entries of the runtime.

    Raises:
        RuntimeUnavailableError: As `Session.open`.
        ModelError: As `Session.open`.
    """
    full = require_provider(provider)
    with tempfile.TemporaryDirectory(prefix="onnxcomp-") as folder:
        path = Path(folder) / "optimized.onnx"
        beside = {
            "session.optimized_model_external_initializers_file_name": "weights.data",
            "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        }
        options = _options(1, level, {**beside, **(config or {})})
        options.optimized_model_filepath = str(path)
        _create(hand_over(model), options, full, None)
        return onnx.load(path, load_external_data=weights)


def profile(
    model: Source,
    feeds: Mapping[str, np.ndarray],
    *,
    provider: str = "cpu",
    threads: int = 1,
    rounds: int = 5,
    optimization: Optimization = "all",
) -> list[NodeRun]:
    """Measures each node of the graph that a provider really runs.

    Args:
        model: The model, as for `Session.open`.
        feeds: One sample.
        provider: The execution provider.
        threads: Threads of one operator.
        rounds: Runs; a node's time is the median over them, after one run to warm up.
        optimization: How far the runtime may rewrite the graph.

    Returns:
        The nodes, the slowest first. Names are those of the optimised graph.
    """
    full = require_provider(provider)
    with tempfile.TemporaryDirectory(prefix="onnxcomp-") as folder:
        options = _options(threads, optimization, None)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session, short, keep = _create(hand_over(model), options, full, None)
        with Session(session, short, keep) as opened:
            for _ in range(rounds + 1):
                opened.run(feeds)
            written = Path(session.end_profiling())
        return read_profile(written, runs=rounds + 1)


def _options(
    threads: int, optimization: Optimization, config: Mapping[str, str] | None
) -> ort.SessionOptions:
    if optimization not in _LEVELS:
        raise UserError(
            f"unknown optimisation level {quoted(optimization)}", hint=", ".join(_LEVELS)
        )
    if threads < 0:
        raise UserError(f"the number of threads cannot be {threads}")
    options = ort.SessionOptions()
    options.graph_optimization_level = _LEVELS[optimization]
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    entries = {"session.intra_op.allow_spinning": "0"} if threads == 1 else {}
    for key, value in {**entries, **(config or {})}.items():
        options.add_session_config_entry(key, value)
    return options


def _create(
    given: Handover,
    options: ort.SessionOptions,
    provider: str,
    provider_options: Mapping[str, str] | None,
) -> tuple[ort.InferenceSession, str, object]:
    """Makes a session of the runtime, the provider's short name, and what must live as long."""
    if given.folder is not None:
        key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(key, str(given.folder))
    values = [_ort_value(array, code) for array, code in given.arrays.values()]
    if values:
        options.add_external_initializers(list(given.arrays), values)
    providers = _with_fallbacks(provider)
    settings = [dict(provider_options or {}), *({} for _ in providers[1:])]
    try:
        session = _started(given, options, providers, settings)
    except _ORT_ERRORS as error:
        raise _load_error(error) from error
    session.disable_fallback()
    # A provider whose libraries do not load is dropped with no more than a log line.
    if provider not in session.get_providers():
        raise RuntimeUnavailableError(
            f"the execution provider {short_name(provider)} did not start",
            hint="its driver or libraries are missing or do not match this onnxruntime",
        )
    return session, short_name(provider), (given.arrays, values)


def _started(
    given: Handover,
    options: ort.SessionOptions,
    providers: Sequence[str],
    settings: Sequence[Mapping[str, str]],
) -> ort.InferenceSession:
    """Makes the runtime's session.

    onnxruntime 1.31 takes float8 for int8: it makes integer products of it, and drops a Relu in front of
    a Q because its zero point is the smallest number. Then the model is refused, or silently wrong.
    """
    if not given.float8:
        return ort.InferenceSession(given.model, options, providers, settings)
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(
        given.model, options, providers, settings, disabled_optimizers=_TAKE_FLOAT8_FOR_INT8
    )


def _with_fallbacks(provider: str) -> list[str]:
    wanted = [provider]
    if provider == PROVIDERS["tensorrt"]:
        wanted.append(PROVIDERS["cuda"])
    wanted.append(PROVIDERS["cpu"])
    there = ort.get_available_providers()
    return [name for name in dict.fromkeys(wanted) if name in there]


@contextlib.contextmanager
def _limited(seconds: float | None) -> Iterator[ort.RunOptions | None]:
    """Gives options for a run that a timer tells to stop."""
    if seconds is None:
        yield None
        return
    options = ort.RunOptions()
    timer = threading.Timer(seconds, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        yield options
    finally:
        timer.cancel()


def _ort_value(array: np.ndarray, code: int) -> ort.OrtValue:
    """Wraps an array without copying it; the array must outlive the value."""
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, code)


def _to_numpy(result: object) -> object:
    """Returns a result as the caller knows it: arrays also of the types that numpy lacks."""
    if not isinstance(result, ort.OrtValue):
        return result
    code = result.element_type() if result.is_tensor() else None
    if code is None or elements.is_native(result.data_type()):
        return result.numpy()
    data = ctypes.string_at(result.data_ptr(), result.tensor_size_in_bytes())
    return elements.array_from_bytes(data, tuple(result.shape()), code)


def _spec(arg: ort.NodeArg, *, optional: bool = False) -> TensorSpec:
    dtype = elements.element_dtype(arg.type)
    shape = (
        None
        if dtype is None
        else tuple(dim or None if isinstance(dim, str) else dim for dim in arg.shape)
    )
    return TensorSpec(arg.name, dtype, shape, optional=optional)


def _load_error(error: Exception) -> UserError:
    text = str(error)
    if isinstance(error, _ORT.InvalidProtobuf) or "No graph was found" in text:
        return ModelError("not an ONNX model: the protobuf cannot be read")
    line = clear_line(text)
    if isinstance(error, (_ORT.NotImplemented, _ORT.EPFail)) or says_not_supported(text):
        return RuntimeUnavailableError(
            f"onnxruntime {ort.__version__} cannot load the model: {line}"
        )
    return ModelError(f"onnxruntime refuses the model: {line}")


def _run_error(error: Exception) -> UserError:
    line = clear_line(str(error))
    if isinstance(error, (_ORT.InvalidArgument, ValueError)):
        return SamplesError(f"the samples do not fit the model: {line}")
    return RuntimeUnavailableError(f"onnxruntime failed while it ran the model: {line}")
