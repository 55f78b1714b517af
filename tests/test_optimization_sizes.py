"""Models that compute with sizes, optimized: whatever the sizes are, the results stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from onnxcomp.errors import ModelError, UserError
from onnxcomp.ir import Model
from onnxcomp.optimization import optimize
from onnxcomp.runtime import Session
from tests.helpers.graphs import draw
from tests.helpers.sizing import Sizing, breaks_the_standard, drawn_feeds

if TYPE_CHECKING:
    from collections.abc import Iterator


def runs(
    source: onnx.ModelProto, count: int
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Feeds that a model takes, with what it makes of them; sizes of 0 and 1 are among them."""
    rng = np.random.default_rng(0)
    try:
        session = Session.open(source, optimization="disable", threads=1)
    except UserError:
        return
    with session:
        for feeds in [drawn_feeds(rng) for _ in range(count)]:
            try:
                found = session.run(feeds)
            except UserError:
                continue
            if not breaks_the_standard(source, feeds | found):
                yield feeds, found


def is_valid(source: onnx.ModelProto) -> bool:
    try:
        Model.load(source)
    except ModelError:
        return False
    return len(list(runs(source, 10))) > 3


@pytest.mark.parametrize("seed", range(30))
def test_results_stay_whatever_the_sizes_are(seed: int) -> None:
    source = Sizing(seed).model(10, is_valid)
    kept = onnx.ModelProto()
    kept.CopyFrom(source)
    outputs = [info for at, info in enumerate(source.graph.output) if at % 5 == seed % 5]
    del kept.graph.output[:]
    kept.graph.output.extend([*outputs, source.graph.output[-1]][-4:])
    if len({info.name for info in kept.graph.output}) < len(kept.graph.output):
        kept.graph.output.pop()
    result = optimize(kept, verify=False)
    assert not any(outcome.rolled_back for outcome in result.outcomes)
    with Session.open(result.model, optimization="disable", threads=1) as session:
        for feeds, expected in runs(source, 20):
            try:
                found = session.run(feeds)
            except UserError:
                # A size that is inferred beside a batch of 0: as in onnxruntime's own fusion.
                assert any(not array.size for array in expected.values())
                continue
            for name, array in found.items():
                np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.mark.parametrize("seed", [1075, 1768, 1880, 2913, 3574, 3629])
def test_one_run_settles(seed: int) -> None:
    # Values that one pass makes have shapes and types for the next: no second run finds more.
    first = optimize(draw(seed), verify=False)
    assert first.changed
    again = optimize(first.model.to_proto(), verify=False)
    assert not again.changed, [outcome.step for outcome in again.outcomes if outcome.changed]
