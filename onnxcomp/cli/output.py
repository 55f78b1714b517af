"""Printing: tables or text for people, one JSON document for programs."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from onnxcomp.cli.settings import settings
from onnxcomp.errors import UserError, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rich.console import Console

    from onnxcomp.passbase import Progress
    from onnxcomp.report import Report


def emit(text: str, data: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    """Prints a result that is wanted in any case: text, or with `--json` the data.

    Args:
        text: For people; lines are printed as they are.
        data: The same for programs.
    """
    if settings().json:
        print_json(data)
    else:
        put(text)


def put(text: str) -> None:
    """Prints text on standard output."""
    with _writing():
        print(text)


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot write to standard output: {reason}") from None


def emit_tables(draw: Callable[[Console], None], data: Any) -> None:  # noqa: ANN401 - as above
    """As `emit`, for a result that is drawn on a console."""
    if settings().json:
        print_json(data)
        return
    from onnxcomp.report.text import draw_on

    with _writing():
        draw_on(sys.stdout, draw)


def print_json(data: Any) -> None:  # noqa: ANN401 - as above
    """Prints one JSON document."""
    from onnxcomp.report.record import plain

    put(json.dumps(plain(data), indent=2, allow_nan=False))


def remark(text: str) -> None:
    """Prints a line about what happened, which nobody needs who asked for quiet or for JSON."""
    chosen = settings()
    if not (chosen.quiet or chosen.json):
        put(text)


def show_report(report: Report, *, file: Path | None = None) -> None:
    """Prints a report and stores it where the user asked for that: a page for `.html`, else JSON.

    Args:
        report: What was done.
        file: From `--report`.
    """
    if file is not None:
        write_text(file, _stored(report, file))
    chosen = settings()
    if chosen.json:
        put(report.to_json())
    elif not chosen.quiet:
        from onnxcomp.report.text import draw_on, render

        with _writing():
            draw_on(sys.stdout, lambda console: render(report, console, verbose=chosen.verbose))


def _stored(report: Report, file: Path) -> str:
    if file.suffix.lower() not in {".html", ".htm"}:
        return report.to_json() + "\n"
    from onnxcomp.report.html import to_html

    return to_html(report)


def write_text(path: Path, text: str) -> None:
    """Writes a small file that is absent or complete."""
    from onnxcomp.ir.atomic import AtomicWriter

    try:
        with AtomicWriter(path, durable=False) as writer:
            writer.open().write(text.encode())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot write {quoted(path, 200)}: {reason}") from None


def progress() -> Progress:
    """Returns progress bars if there is somebody to look at them."""
    from onnxcomp.report.progress import progress_for

    chosen = settings()
    return progress_for(quiet=chosen.quiet or chosen.json)
