"""Whatever graph is drawn: simplifying keeps numbers, signature and validity, and then settles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings

from onnxcomp.pipeline import Pipeline
from onnxcomp.recipe import Fixpoint
from onnxcomp_passes.simplify.eliminate_dead import EliminateDead
from onnxcomp_passes.simplify.fold_constants import FoldConstants
from onnxcomp_passes.simplify.inline_branches import InlineBranches
from onnxcomp_passes.simplify.share_common import ShareCommon
from tests.helpers.check import assert_holds, assert_rolls_back
from tests.helpers.strategies import graphs

if TYPE_CHECKING:
    from onnxcomp.passbase import Pass

PASSES: tuple[Pass, ...] = (FoldConstants(), InlineBranches(), ShareCommon(), EliminateDead())
SETTINGS = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("rewrite", PASSES, ids=lambda rewrite: rewrite.name)
@SETTINGS
@given(text=graphs())
def test_each_pass_holds(rewrite: Pass, text: str) -> None:
    assert_holds(rewrite, text, runtimes=("onnxruntime",))
    assert_rolls_back(rewrite, text)


@SETTINGS
@given(text=graphs())
def test_all_together_hold(text: str) -> None:
    assert_holds(Pipeline((Fixpoint(PASSES),)), text)
