"""Scores and times the models that tools made of one bundle."""

from pathlib import Path
from typing import Any

from _common import Row, interleaved_latency, model_bytes, open_session, ratio, run_session
from _models import Bundle


def score_and_time(
    bundle: Bundle, models: dict[str, Path], rows: dict[str, Row], rounds: int
) -> None:
    """Adds scores on evaluation data, bytes, and latency relative to `float`, all models in turns.

    Args:
        bundle: Data and metric.
        models: Files by the name of their row; `float` is the original.
        rows: What is known of each; a model that does not run gets a note.
        rounds: How often each takes its turn.
    """
    sessions: dict[str, Any] = {}
    for name, model in models.items():
        try:
            session = open_session(model)
            scores = bundle.score([run_session(session, feeds) for feeds in bundle.feeds])
            session.run(None, bundle.timed_feeds)
        except Exception as error:  # noqa: BLE001  (onnxruntime raises many kinds)
            rows[name]["note"] += f" does not run: {str(error)[:120]}"
            continue
        sessions[name] = (session, bundle.timed_feeds)
        rows[name] |= {
            "metric": scores[bundle.primary],
            "cosine": scores["cosine"],
            "sqnr_db": scores["sqnr_db"],
            "scores": scores,
            "bytes": model_bytes(model),
        }
    if "float" not in sessions:
        return
    times = interleaved_latency(sessions, rounds=rounds)
    for name, seconds in times.items():
        rows[name]["latency_ratio"], rows[name]["spread"] = ratio(seconds, times["float"])
        rows[name]["best_ms"] = min(seconds) * 1e3
