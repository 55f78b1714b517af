"""`rules`: rewrites of the user's own, from a Python file."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from onnxcomp.errors import UserError, quoted
from onnxcomp.patterns import load_rules
from onnxcomp.patterns.rewriting import NEAR_MISS
from onnxcomp.rules import RulePass

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxcomp.rules import Rule


class Rules(RulePass):
    """Applies rewrites of your own, from a Python file.

    The file is run, and every rule that it defines with `onnxcomp.patterns.rewrite_rule` is tried on
    every node of every scope until none applies. A rule must keep what the model computes: the
    verification of `optimize` holds it to that.

    ```
    rules{file="my_rules.py"}
    rules{file="my_rules.py" only=["swish"]}
    ```
    """

    name: ClassVar[str] = "rules"
    lossless: ClassVar[bool] = True
    near_miss_code: ClassVar[str] = "RUL101"
    codes: ClassVar[Mapping[str, str]] = {"RUL101": NEAR_MISS}

    file: str
    """The Python file. Only name one that you trust: it is run."""
    only: tuple[str, ...] = ()
    """Names of the rules to apply, by default all."""

    @override
    def rules(self) -> tuple[Rule, ...]:
        found = load_rules(self.file)
        for name in self.only:
            if name not in found:
                raise UserError(
                    f"{quoted(self.file, 200)} has no rule {quoted(name)}",
                    hint=f"it has {', '.join(found)}",
                )
        return tuple(rule for name, rule in found.items() if not self.only or name in self.only)
