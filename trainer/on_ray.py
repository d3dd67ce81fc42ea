"""The same training on a Ray cluster: Ray Train starts the ranks, and starts them again after a loss."""

import os
from pathlib import Path
from typing import Any

import torch

from pipeline.cluster import connected, places
from pipeline.errors import BadInput, WorkFailed
from pipeline.store import one_line
from trainer import checkpoint, loop
from trainer.task import TrainConfig, prepare

MAX_FAILURES = 3  # of workers or machines, in one run of the command


def train(config: TrainConfig, num_workers: int | None, address: str | None) -> Path:
    """`loop.train` on `num_workers` ranks, each a GPU, or a CPU where there is none; returns the last checkpoint.

    The run's folder has to be one that every machine reaches. When a worker is lost, all begin again from the newest
    checkpoint.

    Raises:
        BadInput: see `loop.train`; or Ray Train's packages are missing.
        WorkFailed: it failed more than `MAX_FAILURES` times.
    """
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise BadInput("--on ray: wanted Ray Train's packages; pip install 'ray[train]'") from error
    import ray

    config = config.model_copy(update={"out": config.out.absolute()})
    prepare(config, torch.device("cpu"))  # what cannot work is said here, not by every worker
    with connected(address):
        workers, gpus = places(ray.cluster_resources(), num_workers, None)  # type: ignore[no-untyped-call]
        loop.check_ranks(config, workers)
        trainer = TorchTrainer(
            _work,
            train_loop_config={"config": config.model_dump(mode="json"), "folder": str(Path.cwd())},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus > 0, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(
                name="ray", storage_path=str(config.out), failure_config=FailureConfig(max_failures=MAX_FAILURES)
            ),
        )
        try:
            trainer.fit()
        except Exception as error:  # Ray Train wraps whatever a worker raised
            raise WorkFailed(f"training on Ray failed: {one_line(error)}") from error
    return checkpoint.find(config.out)


def _work(settings: dict[str, Any]) -> None:
    os.chdir(settings["folder"])
    loop.train(TrainConfig.model_validate(settings["config"]))
