"""How named arrays divide into samples."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxcomp.errors import SamplesError, quoted
from onnxcomp.samples.feeds import (
    LABEL_PREFIX,
    check_dtype,
    check_names,
    check_shape,
    fitted,
    fixed_size,
    is_label,
    shape_text,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxcomp.samples.npy import ArrayHeader
    from onnxcomp.samples.table import Table
    from onnxcomp.signature import TensorSpec

_INDEXED = re.compile(r"(\d{1,18})/(.+)", re.DOTALL | re.ASCII)


@dataclass(frozen=True)
class Column:
    """Where the values of one input are.

    Attributes:
        key: The array.
        shape: Shape of one sample as the model takes it.
        rows: Entries of the first axis that make one sample; 0 when the array is not divided.
        shared: True when all samples use the same array (a scalar input given once).
    """

    key: str
    shape: tuple[int, ...]
    rows: int = 0
    shared: bool = False


@dataclass(frozen=True)
class Layout:
    """The samples of a table.

    Attributes:
        count: Number of samples.
        columns: For arrays that hold all samples: one column per input.
        keyed: For one array per sample and input: the columns of each sample.
        how: How the samples were found, for the report.
        notes: What was converted or left out.
        labels: Keys of arrays for the metric.
    """

    count: int
    columns: Mapping[str, Column]
    keyed: Sequence[Mapping[str, Column]]
    how: str
    notes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


def plan_layout(table: Table, inputs: Sequence[TensorSpec]) -> Layout:
    """Finds the samples in a table, from names, shapes and dtypes alone.

    Raises:
        SamplesError: If a name, shape or dtype does not fit the model, or there is no sample.
    """
    labels = tuple(key for key in table.headers if is_label(key, inputs))
    keys = _keys(table, inputs)
    known = {spec.name for spec in inputs}
    if keys and all(_INDEXED.fullmatch(key) and key not in known for key in keys):
        return _keyed(table, keys, inputs, labels)
    if any(_INDEXED.fullmatch(key) and key not in known for key in keys) and known & set(keys):
        raise SamplesError(f"{table.place}: keys like 0/x and keys like x cannot be mixed")
    return _stacked(table, keys, inputs, labels)


def _keys(table: Table, inputs: Sequence[TensorSpec]) -> dict[str, str]:
    """Returns key -> name of the model input or `<i>/<input>`."""
    keys = [key for key in table.headers if not is_label(key, inputs)]
    required = [spec for spec in inputs if not spec.optional]
    # numpy.savez(file, array) names the array arr_0.
    if keys == ["arr_0"] and len(required) == 1:
        return {"arr_0": required[0].name}
    return {key: key for key in keys}


def _keyed(
    table: Table, keys: Mapping[str, str], inputs: Sequence[TensorSpec], labels: tuple[str, ...]
) -> Layout:
    found: dict[int, dict[str, str]] = {}
    for key in keys:
        match = _INDEXED.fullmatch(key)
        assert match is not None
        index, name = int(match[1]), match[2]
        if name in found.setdefault(index, {}):
            raise SamplesError(f"{table.place}: sample {index} has two arrays for {quoted(name)}")
        if not name.startswith(LABEL_PREFIX):
            found[index][name] = key
    specs = {spec.name: spec for spec in inputs}
    notes: dict[str, None] = {}
    samples = []
    for index in sorted(found):
        place = f"{table.place}, sample {index}"
        check_names(found[index], inputs, place)
        columns = {}
        for name, key in found[index].items():
            where = f"{place}, input {quoted(name)}"
            columns[name] = Column(key, check_shape(table.headers[key].shape, specs[name], where))
            notes[check_dtype(table.headers[key].dtype, specs[name], where)] = None
        samples.append(columns)
    return Layout(len(samples), {}, samples, "keys <sample>/<input>", _texts(notes), labels)


def _stacked(
    table: Table, keys: Mapping[str, str], inputs: Sequence[TensorSpec], labels: tuple[str, ...]
) -> Layout:
    check_names(keys.values(), inputs, table.place)
    specs = {spec.name: spec for spec in inputs}
    columns: dict[str, Column] = {}
    counts: dict[str, int] = {}
    notes: dict[str, None] = {}
    for key, name in keys.items():
        place = f"{table.place}, input {quoted(name)}"
        header = table.headers[key]
        notes[check_dtype(header.dtype, specs[name], place)] = None
        columns[name], count = _column(key, header, specs[name], place)
        if not columns[name].shared:
            counts[name] = count
        left = header.shape[0] % columns[name].rows if columns[name].rows else 0
        if left:
            notes[f"{quoted(name)}: {left} rows left over that do not fill a batch"] = None
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{quoted(name)} {count}" for name, count in counts.items())
        raise SamplesError(f"{table.place}: the inputs have different numbers of samples: {listed}")
    return Layout(
        next(iter(counts.values()), 1), columns, (), _how(columns, table), _texts(notes), labels
    )


def _column(key: str, header: ArrayHeader, spec: TensorSpec, place: str) -> tuple[Column, int]:
    shape = header.shape
    extra = len(shape) - (max(len(shape) - 1, 0) if spec.shape is None else len(spec.shape))
    if spec.shape == () and shape == ():
        return Column(key, (), shared=True), 1
    if extra == 1 or (spec.shape == () and extra > 1):
        fit, rows, count = fitted(shape[1:], spec), 1, shape[0]
        column = None if fit is None else Column(key, fit, rows)
    elif extra == 0 and spec.shape:
        size = fixed_size(spec.shape[0]) or 1
        fit, count = fitted((size, *shape[1:]), spec), shape[0] // size
        column = None if fit is None else Column(key, fit, size)
    else:
        fit, count = fitted(shape, spec), 1
        column = None if fit is None else Column(key, fit)
    if column is None:
        takes = shape_text(spec.shape)
        hint = f"samples go along a new first axis: [N{',' if spec.shape else ''}{takes[1:]}"
        message = f"{place}: the shape is {shape_text(shape)}, the model takes {takes}"
        raise SamplesError(message, hint=hint)
    if count == 0:
        raise SamplesError(f"{place}: there is no sample in an array of shape {shape_text(shape)}")
    return column, count


def _how(columns: Mapping[str, Column], table: Table) -> str:
    divided = [column for column in columns.values() if column.rows]
    if not divided:
        return "one sample"
    if any(len(table.headers[column.key].shape) == len(column.shape) for column in divided):
        sizes = {column.rows for column in divided}
        return "split along the batch axis" + (
            f" in batches of {max(sizes)}" if max(sizes) > 1 else ""
        )
    return "axis 0 = sample"


def _texts(notes: Mapping[str, None]) -> tuple[str, ...]:
    return tuple(note for note in notes if note)
