"""What a gateway has learned of its fleet, as gauges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from baton.gateway.seam import Figure
from baton.router.learning import ModelBook
from baton.router.view import WorkerView

# The prompt whose time stands for a worker's speed.
_PROMPT_TOKENS = 1000


def model_figures(models: ModelBook, workers: Sequence[WorkerView]) -> Iterator[Figure]:
    """Each worker's models at a glance, how far off they are, and what a remote prefill costs."""
    for worker in workers:
        labels = (("worker", worker.member.worker_id), ("role", worker.member.role.value))
        yield Figure(
            "model_prefill_seconds",
            f"Predicted time to compute {_PROMPT_TOKENS} prompt tokens.",
            labels,
            worker.times.prefill.predict(_PROMPT_TOKENS),
        )
    for worker in workers:
        labels = (("worker", worker.member.worker_id), ("role", worker.member.role.value))
        load = worker.load
        yield Figure(
            "model_decode_step_seconds",
            "Predicted time of the next decode step.",
            labels,
            worker.times.decode.predict(load.num_running, load.running_kv_tokens),
        )
    for worker in workers:
        yield Figure(
            "worker_kv_blind",
            "1 while it is not known what the worker's prefix cache holds.",
            (("worker", worker.member.worker_id), ("role", worker.member.role.value)),
            float(worker.kv_blind),
        )
    errors = models.errors()
    for error in errors:
        for kind, value in (("prefill", error.prefill_error), ("decode", error.decode_error)):
            yield Figure(
                "model_error_ratio",
                "Mean relative error of predicted step times.",
                (("worker", error.worker_id), ("kind", kind)),
                value,
            )
    for error in errors:
        counts = (
            ("prefill", error.num_prefill_samples),
            ("decode", error.num_decode_samples),
        )
        for kind, count in counts:
            yield Figure(
                "model_samples",
                "Steps that the model was learned from.",
                (("worker", error.worker_id), ("kind", kind)),
                count,
            )
    yield Figure(
        "model_handshake_seconds",
        "What a remote prefill costs beside waiting, computing and moving KV.",
        (),
        models.handshake_s,
    )
