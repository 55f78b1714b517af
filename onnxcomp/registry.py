"""Passes are found through entry points, the built-in ones like everybody else's."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from onnxcomp.errors import RecipeError, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxcomp.passbase import Pass

GROUP = "onnxcomp.passes"


@dataclass(frozen=True)
class PassInfo:
    """A pass that some installed distribution offers; loaded only when it is used.

    Attributes:
        name: Name of the pass.
        distribution: Who brings it.
        entry: Where it is.
        clash: Another distribution that claims the same name, empty when there is none.
    """

    name: str
    distribution: str
    entry: EntryPoint
    clash: str = ""

    def load(self) -> type[Pass]:
        """Imports the pass.

        Raises:
            RecipeError: If it cannot be imported, is no pass, or two distributions claim the name.
        """
        from onnxcomp.passbase import Pass

        if self.clash:
            raise RecipeError(
                f"two distributions offer a pass {quoted(self.name)}: {self.distribution} and {self.clash}",
                hint="uninstall one of them",
            )
        try:
            found = self.entry.load()
        except Exception as error:
            raise RecipeError(
                f"pass {quoted(self.name)} of {self.distribution} cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not (isinstance(found, type) and issubclass(found, Pass)) or found.name != self.name:
            raise RecipeError(
                f"{self.entry.value} of {self.distribution} is not a pass named {self.name}"
            )
        return found

    def problem(self) -> str:
        """Returns why the pass cannot be used, empty when it can."""
        try:
            self.load()
        except RecipeError as error:
            return str(error)
        return ""


@cache
def passes() -> Mapping[str, PassInfo]:
    """Returns every installed pass by name, sorted; nothing is imported."""
    found: dict[str, PassInfo] = {}
    for entry in entry_points(group=GROUP):
        owner = entry.dist.name if entry.dist else "?"
        known = found.get(entry.name)
        if known is not None and (known.distribution, known.entry.value) == (owner, entry.value):
            continue  # the same distribution can be on the path twice
        clash = known.distribution if known else ""
        found[entry.name] = PassInfo(entry.name, owner, entry, clash)
    return dict(sorted(found.items()))


def get(name: str) -> type[Pass]:
    """Returns the pass of a name.

    Raises:
        RecipeError: If there is none; the message names near ones.
    """
    known = passes()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see `onnxcomp passes`"
        raise RecipeError(f"no pass {quoted(name)}", hint=hint)
    return known[name].load()
