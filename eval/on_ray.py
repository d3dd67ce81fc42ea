"""The evaluation on a Ray cluster."""

from typing import Any

from eval import results
from eval.config import EvaluateConfig
from eval.evaluate import evaluate
from eval.results import Report
from trainer import on_ray


def evaluate_on_ray(config: EvaluateConfig, num_workers: int | None, address: str | None) -> Report:
    """`evaluate` on ranks that share the sampling, each a GPU, or a CPU where there is none.

    A report that goes to a store is made by one rank: several need a folder that all of them reach.

    Raises:
        BadInput: Ray Train's packages are missing, or no cluster answers.
        WorkFailed: see `evaluate`.
    """
    config = config.model_copy(update={"out": config.out.absolute()})
    num_workers = 1 if config.mirror is not None else num_workers
    on_ray.launch(_evaluate, config.model_dump(mode="json"), config.mirror or str(config.out), num_workers, address)
    return results.read_report(config.mirror or config.out)


def _evaluate(settings: dict[str, Any]) -> None:
    evaluate(EvaluateConfig.model_validate(settings))
