"""The evaluation on a Ray cluster."""

from typing import Any

from eval import results
from eval.config import EvaluateConfig
from eval.evaluate import evaluate
from eval.results import Report
from trainer import on_ray


def evaluate_on_ray(config: EvaluateConfig, num_workers: int | None, address: str | None) -> Report:
    """`evaluate` on ranks of a cluster that share the sampling, each with a GPU, or a CPU if there are none.

    A report that is uploaded to a store is made by one rank, because several need a shared folder.

    Raises:
        BadInput: Ray Train is not installed, or no cluster answers.
        WorkFailed: see `evaluate`.
    """
    config = config.model_copy(update={"out": config.out.absolute()})
    num_workers = 1 if config.mirror is not None else num_workers
    on_ray.launch(_evaluate, config.model_dump(mode="json"), config.mirror or str(config.out), num_workers, address)
    return results.read_report(config.mirror or config.out)


def _evaluate(settings: dict[str, Any]) -> None:
    evaluate(EvaluateConfig.model_validate(settings))
