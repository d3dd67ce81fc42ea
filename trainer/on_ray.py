"""Training on a Ray cluster: Ray Train starts the ranks, and restarts them when one is lost."""

import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.common.errors import BadInput, Stopped, WorkFailed, one_line
from pipeline.common.interrupt import Stop, stoppable
from pipeline.common.progress import say
from pipeline.common.ray_cluster import connected, worker_slots
from pipeline.storage.output import Output, check_output
from pipeline.storage.store import is_url, open_store
from trainer import ray_stop
from trainer.checkpoints import checkpoint, mirror
from trainer.config import TrainConfig
from trainer.setup import prepare
from trainer.train import check_ranks, train

MAX_FAILURES = 3  # of workers or machines, in one run of the command


def train_on_ray(config: TrainConfig, num_workers: int | None, address: str | None) -> Path:
    """`train` on `num_workers` ranks, each a GPU, or a CPU where there is none; returns the last checkpoint.

    By default there are as many ranks as slots, or the most below that share a batch evenly. Every machine must reach
    the run's folder, or it is a URL. When a worker is lost, or its process gets a SIGTERM, all ranks restart from the
    newest checkpoint; in the second case they save one first.

    Raises:
        BadInput: see `train`; or Ray Train's packages are missing.
        WorkFailed: it failed more than `MAX_FAILURES` times.
        Stopped: a signal interrupted this process, and the ranks have saved a checkpoint.
    """
    config = config.model_copy(update={"out": config.out.absolute()})
    check_output(open_store(config.mirror or str(config.out)), Output.TRAINING)
    prepare(config, torch.device("cpu"))  # faults are reported once here, not by every worker
    settings = config.model_dump(mode="json")
    choose = partial(_most_ranks, config) if num_workers is None else partial(_given_ranks, config)
    with stoppable("stopping after a checkpoint") as stop:
        launch(_train, settings, config.mirror or str(config.out), num_workers, address, choose, stop)
    newest = checkpoint.find(config.out if config.mirror is None else mirror.download_run(config.mirror, config.out))
    step = checkpoint.read_info(newest).step
    if stop.signal and step < config.trainer.num_steps:
        raise Stopped(stop.signal, f"stopped after step {step}, which is saved")
    return newest


def _given_ranks(config: TrainConfig, ranks: int) -> int:
    check_ranks(config, ranks)
    return ranks


def _most_ranks(config: TrainConfig, slots: int) -> int:
    """The largest number of ranks up to `slots` that share a batch evenly."""
    for ranks in range(slots, 1, -1):
        try:
            check_ranks(config, ranks)
        except BadInput:
            continue
        if ranks < slots:
            say(f"{ranks} ranks on {slots} slots: so many share a batch of {config.trainer.batch_size} evenly")
        return ranks
    return _given_ranks(config, 1)


def launch(
    work: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    out: str,
    num_workers: int | None,
    address: str | None,
    choose: Callable[[int], int] = lambda ranks: ranks,
    stop: Stop | None = None,
) -> None:
    """Call `work` with `settings` on every rank, in this process's working folder; Ray's own files go into `out`.

    `choose` gives the number of ranks for a number of slots. `stop` is for work that obeys `ray_stop.here`: that is set
    on every rank once `stop` is, and on a rank whose process gets a SIGTERM. In the second case `Stopped`, raised by
    the work, lets Ray Train start it again.

    Raises:
        BadInput: Ray Train's packages are missing, or no cluster answers.
        WorkFailed: a rank failed, or more than `MAX_FAILURES` workers were lost.
    """
    check_packages()
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    with connected(address):
        slots, gpus = worker_slots(ray.cluster_resources(), num_workers, None)  # type: ignore[no-untyped-call]
        workers, request = choose(slots), None if stop is None else ray_stop.open_request()
        order = {"work": work, "settings": settings, "folder": str(Path.cwd()), "request": request}
        trainer = TorchTrainer(
            _in_folder,
            train_loop_config=order,
            torch_config=None if stop is None else ray_stop.torch_config(),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus > 0, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name="ray", failure_config=FailureConfig(max_failures=MAX_FAILURES), **_storage(out)),
        )
        _fit(trainer, request, stop)


def _fit(trainer: Any, request: Any, stop: Stop | None) -> None:
    """`trainer.fit` in a thread: in the main thread Ray Train would take SIGINT for itself, and abort."""
    errors: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # Ray Train wraps whatever a worker raised
            errors.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(ray_stop.POLL_SECONDS)
        if stop is not None and stop.is_set():
            request.make.remote(stop.signal)
    if errors:
        raise WorkFailed(f"the work on Ray failed: {one_line(errors[0])}") from errors[0]


def check_packages() -> None:
    """Raises `BadInput` unless Ray Train's packages are installed."""
    try:
        import ray.train.torch  # noqa: F401
    except ImportError as error:
        raise BadInput("--on ray: wanted Ray Train's packages; pip install 'ray[train]'") from error


def _storage(out: str) -> dict[str, Any]:
    """Ray Train's arguments for where it writes."""
    if not is_url(out):
        return {"storage_path": out}
    import fsspec
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    filesystem, path = fsspec.url_to_fs(out)
    return {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(filesystem))}


def _in_folder(order: dict[str, Any]) -> None:
    if Path(order["folder"]).is_dir():  # a machine that shares only a store may lack it
        os.chdir(order["folder"])
    request = order["request"]
    if request is not None:
        ray_stop.follow(request)
    try:
        order["work"](order["settings"])
    except Stopped:
        if request is None or ray_stop.asked(request) is None:
            raise


def _train(settings: dict[str, Any]) -> None:
    train(TrainConfig.model_validate(settings), ray_stop.here)
