"""Makes weights that are declared as inputs the constants that they are meant to be."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from onnxcomp.ir.interface import fix_default
from onnxcomp.ir.ops import PROTECTED
from onnxcomp.passbase import Pass

if TYPE_CHECKING:
    from onnxcomp.passbase import Context

# Before this version of the format every weight had to be an input, and none could be overridden.
_IR_WITH_FREE_INITIALIZERS = 4


class FixSignature(Pass):
    """Take weights out of the inputs, where old exporters put them.

    An input with a default may be replaced by the caller in any run, so nothing can be folded into it
    or fused with it, neither here nor in the runtime. When nobody does that (weights of networks), this
    makes them constants. What callers then can no longer say: another value for these inputs. That is
    why `optimize` never does it by itself.

        g (x, w = {..}) => (y) { y = Conv (x, w) }      ->      g (x) => (y) <w = {..}> { y = Conv (x, w) }
    """

    name: ClassVar[str] = "fix-signature"
    codes: ClassVar[Mapping[str, str]] = {
        "SIG101": "No input has a default that could be made constant.",
        "SIG102": "An input with a default stays, because training information refers to it.",
    }

    only: tuple[str, ...] = ()
    """Patterns for names of inputs to make constant; all that have a default when there are none."""
    keep: tuple[str, ...] = ()
    """Patterns for names of inputs that callers do replace, and that stay."""

    @override
    def run(self, ctx: Context) -> None:
        graph, edit = ctx.model.graph, ctx.edit
        for value in [each for each in graph.inputs if each.is_initializer()]:
            if not self._wants(value.name or ""):
                continue
            if PROTECTED in value.meta:
                ctx.skip("SIG102", value, "training information refers to it")
                continue
            fix_default(edit, graph, value)
        if edit.changed:
            edit.require_ir_version(_IR_WITH_FREE_INITIALIZERS)
        else:
            ctx.note("SIG101", None, "no input has a default that could be made constant")

    def _wants(self, name: str) -> bool:
        if any(fnmatchcase(name, pattern) for pattern in self.keep):
            return False
        return not self.only or any(fnmatchcase(name, pattern) for pattern in self.only)
