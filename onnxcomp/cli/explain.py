"""`onnxcomp explain`: what a diagnostic code means and what to do about it."""

from __future__ import annotations

from difflib import get_close_matches

import click

from onnxcomp.cli.command import Command
from onnxcomp.cli.output import emit
from onnxcomp.cli.settings import everywhere
from onnxcomp.errors import UserError, quoted


@click.command(cls=Command)
@click.argument("code", required=False)
@everywhere
def explain(code: str | None) -> None:
    """Explains a diagnostic CODE such as QNT103.

    Without a code, lists all.     Codes come from the compiler itself and from every pass that is installed.
    """
    known = _codes()
    if code is None:
        text = "\n".join(f"{name}  {meaning}" for name, (meaning, _) in sorted(known.items()))
        emit(text, {name: meaning for name, (meaning, _) in sorted(known.items())})
        return
    found = known.get(code.upper())
    if found is None:
        near = get_close_matches(code.upper(), known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see `onnxcomp explain`"
        raise UserError(f"no diagnostic has the code {quoted(code)}", hint=hint)
    meaning, owner = found
    text = f"{code.upper()} ({owner})\n{meaning}"
    emit(text, {"code": code.upper(), "owner": owner, "meaning": meaning})


def _codes() -> dict[str, tuple[str, str]]:
    """Returns the meaning and the owner of every code."""
    from onnxcomp import registry
    from onnxcomp.diagnostics import CODES
    from onnxcomp.ir.structure import CODES as STRUCTURE_CODES
    from onnxcomp.lint import codes as lint_codes

    known = {code: (text, "onnxcomp") for code, text in {**CODES, **STRUCTURE_CODES}.items()}
    for name, info in registry.passes().items():
        if not info.problem():
            known |= {code: (text, name) for code, text in info.load().codes.items()}
    known |= {code: (text, "lint") for code, text in lint_codes().items()}
    return known
