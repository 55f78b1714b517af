"""Answers about a model, computed when first asked and thrown away when they may be stale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Collection

    from onnxcomp.ir import Model

Answer_co = TypeVar("Answer_co", covariant=True)
Answer = TypeVar("Answer")


class Analysis(Protocol[Answer_co]):
    """A question about a model. Equal questions (frozen, hashable) share one answer."""

    def compute(self, model: Model, facts: Facts) -> Answer_co:
        """Finds the answer; may ask for other answers, must not change the model."""
        ...


class Facts:
    """The cache of answers about one model."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._answers: dict[Any, Any] = {}

    def get(self, question: Analysis[Answer]) -> Answer:
        """Returns the answer to a question, from the cache where it still holds."""
        if question not in self._answers:
            self._answers[question] = question.compute(self._model, self)
        return cast("Answer", self._answers[question])

    def refresh(self, question: Analysis[Answer]) -> Answer:
        """Computes an answer anew, for a pass that asks again after its own edits."""
        self._answers.pop(question, None)
        return self.get(question)

    def keep(self, preserved: Collection[type]) -> None:
        """Throws away everything but the answers to questions of the types given."""
        self._answers = {
            question: answer
            for question, answer in self._answers.items()
            if isinstance(question, tuple(preserved))
        }

    def put(self, question: Analysis[Answer], answer: Answer) -> None:
        """Stores an answer that was found elsewhere (a calibration that was read from a cache)."""
        self._answers[question] = answer
