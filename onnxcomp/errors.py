"""What can go wrong, seen by the person who runs the tool."""

from __future__ import annotations

from typing_extensions import override


class UserError(Exception):
    """Something that the caller can mend: one clear line, no traceback, exit code 1.

    Args:
        message: What is wrong and where, in one line. Names from a model go through `quoted`.
        hint: What to do about it, if the message does not say so already.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @override
    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ModelError(UserError):
    """The model itself is not valid, or not something that can be handled."""


class SamplesError(UserError):
    """Calibration or validation data do not fit the model."""


class TimeLimitError(UserError):
    """A run of a model was stopped because it took too long."""


class RuntimeUnavailableError(UserError):
    """The runtime cannot do what was asked: provider missing, model not loadable."""


class RecipeError(UserError):
    """A recipe, a pipeline text or a pass option is not understood."""


class PassFailedError(UserError):
    """A pass raised or broke the model; the model was rolled back to before the pass."""


class GateMissedError(UserError):
    """The result exists but misses a limit that the caller set: exit code 3."""

    exit_code = 3


class NothingToDoError(UserError):
    """The model has nothing that could be done to it: exit code 3, no result."""

    exit_code = 3


def quoted(name: object, limit: int = 80) -> str:
    """Returns a name from an untrusted model in a form that is safe to print on one line."""
    text = repr(str(name))[1:-1]
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return f'"{text}"'
