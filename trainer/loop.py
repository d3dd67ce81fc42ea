"""Stage 2: train() reads straight down. One loop trains students on trajectories and teachers on pairs or images."""

import math
import signal
import time
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.config import differences, write_resolved
from pipeline.errors import BadInput, Stopped, WorkFailed
from pipeline.networks import Network
from pipeline.progress import bar, say
from pipeline.stop import Stop, stoppable
from pipeline.store import sweep
from trainer import checkpoint, mirror, samples, snapshots
from trainer.checkpoint import CheckpointInfo, State
from trainer.draws import draws_of
from trainer.ema import Ema
from trainer.logging import Log, open_log
from trainer.objective import Objective, weighted
from trainer.prefetch import InPlace, Prefetcher
from trainer.ranks import Ranks, ranks
from trainer.recipes import Phase
from trainer.task import Task, TrainConfig, TrainerConfig, prepare

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GRAD_NORM = "grad_norm"


def train(config: TrainConfig) -> Path:
    """Train until `num_steps`, from the newest checkpoint in `config.out` if there is one; returns the last one.

    Raises:
        BadInput: the configuration is at odds with itself, the data or the run in `config.out`.
        WorkFailed: a loss is not finite (its batch is saved), a shard is damaged, or a checkpoint cannot be written.
        Stopped: it was asked to stop, and saved where it was.
    """
    with ranks(config.device) as here, stoppable("stopping after a checkpoint") as stop:
        return _train(config, here, stop)


def _train(config: TrainConfig, here: Ranks, stop: Stop) -> Path:
    settings, recipe, device = config.trainer, config.recipe, here.device
    check_ranks(config, here.world)
    task = prepare(config, device)
    network, state = task.network, begin(config, task.network, device)
    _pull(config, here)
    step = resume(config, task, state)
    if not here.agree(step):
        raise WorkFailed(
            f"{config.out}: its machines hold different checkpoints (this one step {step}): wanted a folder that all "
            "of them reach, or a mirror that can be written; remove those that the others lack"
        )
    if step == settings.num_steps and (config.out / samples.FILE).exists():
        say(f"{config.out} is complete: {step} steps of this configuration; nothing to do")
        return _finish(config, here)
    log = open_run(config, task, here, step)
    if settings.compile:
        network.compile()
    objective: nn.Module = Objective(network, state.averages[0].network, task.teacher)
    if here.world > 1:
        objective = DistributedDataParallel(objective, broadcast_buffers=False)
    read = partial(task.stream.batch, rank=here.rank, world=here.world)
    pending: list[Tensor] = []
    phase, last = recipe.phase(step, settings.num_steps), time.monotonic()

    with (
        closing(log),
        (Prefetcher if device.type == "cuda" else InPlace)(read, step, settings.num_steps, device) as batches,
        bar(f"train {recipe.name}", settings.num_steps, step) as advance,
    ):
        while step < settings.num_steps:
            pending.append(take_step(config, here, state, objective, phase, batches.batch(step), step))
            step += 1
            ends_phase = step < settings.num_steps and recipe.phase(step, settings.num_steps) is not phase
            save = step % settings.checkpoint_every == 0 or step == settings.num_steps or ends_phase
            if save or step % settings.log_every == 0 or (here.world == 1 and stop.is_set()):
                # The losses wait on the device until here: fetching them every step would stall it.
                means = fetch(config, task, here, phase, step, pending)
                now = time.monotonic()
                rate = len(pending) * settings.batch_size / (now - last)
                stall, batches.stall_seconds = batches.stall_seconds / (now - last), 0.0
                log.write(step, **means, images_per_second=rate, stall=stall, lr=state.optimizer.param_groups[0]["lr"])
                shown = ", ".join(f"{term.title} {means[term.title]:.2e}" for term in phase.terms)
                advance(len(pending), f"{rate:.0f} images/s, {shown}")
                pending, last = [], now
                asked = here.any(stop.is_set())
                if (save or asked) and here.is_first:
                    _save(config, task, state, step, log)
                    last = time.monotonic()
                here.wait()
                if asked and step < settings.num_steps:
                    raise Stopped(stop.signal or signal.SIGTERM, f"stopped after step {step}, which is saved")
            if ends_phase:
                phase = recipe.phase(step, settings.num_steps)
                say(f"step {step}: from here on minimising {_formula(phase)}")
    task.stream.close()
    if here.is_first:
        samples.save(config.out / samples.FILE, config, state.averages[0].network, task.origin)
    return _finish(config, here)


def _pull(config: TrainConfig, here: Ranks) -> None:
    """On every machine that has no checkpoint as new, the newest of the mirror."""
    if config.mirror is not None and here.is_first_here:
        mirror.pull(config.mirror, config.out)
    here.wait()


def _finish(config: TrainConfig, here: Ranks) -> Path:
    if config.mirror is not None and here.is_first:
        mirror.push(config.out, config.mirror)
    here.wait()
    return checkpoint.find(config.out)


def begin(config: TrainConfig, network: Network, device: torch.device) -> State:
    """What a training of `network` changes, before its first step."""
    settings = config.trainer
    network.train()
    averages = [Ema(network, average) for average in settings.ema]
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
    )
    # Half precision's gradients would underflow; bfloat16 has the range of float32.
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    return State(network, averages, optimizer, scaler)


def take_step(
    config: TrainConfig, here: Ranks, state: State, objective: nn.Module, phase: Phase, batch: Any, step: int
) -> Tensor:
    """Change `state` by step `step` on this rank's `batch`; returns the losses and the gradient's norm [terms + 1]."""
    settings, optimizer, scaler = config.trainer, state.optimizer, state.scaler
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(settings, step)
    optimizer.zero_grad()
    losses = backward(config, here, objective, phase, batch, step, scaler)
    scaler.unscale_(optimizer)
    grad_norm = nn.utils.clip_grad_norm_(state.network.parameters(), settings.max_grad_norm)
    if not (settings.skip_nonfinite and _is_bad(grad_norm)):
        scaler.step(optimizer)
    scaler.update()
    for average in state.averages:
        average.update(state.network, settings.batch_size, (step + 1) * settings.batch_size)
    return torch.cat([losses, grad_norm.detach().reshape(1)])


def backward(
    config: TrainConfig,
    here: Ranks,
    objective: nn.Module,
    phase: Phase,
    batch: Any,
    step: int,
    scaler: torch.amp.GradScaler,
) -> Tensor:
    """Add up the gradients of the losses of `phase` on this rank's batch of `step`; returns the losses [terms]."""
    settings, device = config.trainer, here.device
    share = settings.batch_size // here.world // settings.accumulate
    losses = torch.zeros(len(phase.terms), device=device)
    for part in range(settings.accumulate):
        first = (here.rank * settings.accumulate + part) * share
        draws = draws_of(config.seed, step, settings.batch_size, slice(first, first + share), device)
        with _together(objective, part == settings.accumulate - 1):
            with torch.autocast(device.type, PRECISIONS[settings.precision], settings.precision != "fp32"):
                values = objective(phase, batch.rows(slice(part * share, (part + 1) * share)), draws)
            total = weighted(phase, values) / settings.accumulate
            scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        losses += values.detach() / settings.accumulate
    return losses


def _save(config: TrainConfig, task: Task, state: State, step: int, log: Log) -> None:
    info = CheckpointInfo(
        step=step,
        trains=config.recipe.trains,
        recipe=config.recipe.name,
        config=config.model_dump(mode="json"),
        **task.origin,
    )
    checkpoint.save(config.out, info, state, config.trainer.keep_checkpoints)
    snapshots.save(config.out, state, step, config.trainer.batch_size)
    if config.mirror is not None and step < config.trainer.num_steps:
        try:
            mirror.push(config.out, config.mirror)
        except WorkFailed as error:
            say(f"warning: {error}; trying again with the next checkpoint")
    if log.takes_pictures:
        log.pictures(step, samples.draw(config, state.averages[0].network, task.origin))


def _is_bad(grad_norm: Tensor) -> bool:
    bad = not bool(torch.isfinite(grad_norm))
    if bad:
        say("skipped a step: its gradient is not finite")
    return bad


def _formula(phase: Phase) -> str:
    return " + ".join(f"{term.weight:g} {term.title}" if term.weight != 1 else term.title for term in phase.terms)


def check_ranks(config: TrainConfig, world: int) -> None:
    """Raises `BadInput` if a batch cannot be shared evenly by `world` ranks in the parts that the recipe needs."""
    size, parts = config.trainer.batch_size, world * config.trainer.accumulate
    strides = [term.stride for term in config.recipe.terms]
    if size % parts or any((size // parts) % stride for stride in strides):
        raise BadInput(
            f"batch_size {size} for {world} ranks in {config.trainer.accumulate} parts: wanted equal parts, each "
            f"a multiple of the recipe's strides {strides}"
        )


def _together(objective: nn.Module, is_last: bool) -> Any:
    """Ranks add up their gradients with the last part only."""
    if is_last or not isinstance(objective, DistributedDataParallel):
        return nullcontext()
    return objective.no_sync()


def resume(config: TrainConfig, task: Task, state: State) -> int:
    """Restore the newest checkpoint in `config.out` that can be read; returns the steps it has done.

    Raises:
        BadInput: they were made by another configuration or on other data, or none of them can be read.
    """
    found = checkpoint.find_all(config.out)
    faults: list[str] = []
    for folder in reversed(found):
        try:
            info = checkpoint.read_info(folder)
            _check_same(config, task, info)
            checkpoint.restore(folder, info, state)
        except checkpoint.Damaged as error:
            faults.append(str(error))
            say(f"warning: {error}; trying the one before")
            continue
        say(f"going on from {folder}")
        return info.step
    if faults:
        raise BadInput(f"{config.out}: none of its checkpoints can be read ({faults[0]}); remove them to begin again")
    return 0


def _check_same(config: TrainConfig, task: Task, info: CheckpointInfo) -> None:
    ours, theirs = _identity(config.model_dump(mode="json")), _identity(info.config)
    ours["data_sha256"], theirs["data_sha256"] = task.origin.get("data_sha256"), info.data_sha256
    if fields := differences(theirs, ours):
        raise BadInput(f"{config.out} holds another run ({fields}); choose another folder or ask for that run")


def open_run(config: TrainConfig, task: Task, here: Ranks, step: int) -> Log:
    """Make the run's folder ready to go on after `step` steps: what it runs with, its log, nothing left aside.

    Raises:
        BadInput: the folder cannot be written.
    """
    if not here.is_first:
        return Log()
    try:
        write_resolved(config.out / "config.yaml", config, "train")
        sweep(config.out / "checkpoints")
        log = open_log(config, step)
    except OSError as error:
        raise BadInput(f"{config.out}: wanted a folder that can be written ({error.strerror})") from error
    say(f"recipe {config.recipe.name}: {config.recipe.about}")
    if step == 0:
        say(f"network: {task.start}")
    phase = config.recipe.phase(step, config.trainer.num_steps)
    say(f"step {step}: minimising {_formula(phase)}")
    return log


FREE = {"log_every", "checkpoint_every", "keep_checkpoints", "compile", "accumulate", "skip_nonfinite"}


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """What decides a run's weights: the configuration less where it runs and what it tells."""
    trainer = {k: v for k, v in config["trainer"].items() if k not in FREE}
    elsewhere = {"out", "device", "data", "mirror", "tensorboard", "wandb"}
    return {k: v for k, v in config.items() if k not in elsewhere} | {"trainer": trainer}


def fetch(
    config: TrainConfig, task: Task, here: Ranks, phase: Phase, step: int, pending: list[Tensor]
) -> dict[str, float]:
    """The means over ranks and steps of what is pending: the losses and the gradient's norm of the steps up to `step`.

    Raises:
        WorkFailed: one is not finite; the batch of that step is saved beside the log.
    """
    table = here.mean(torch.stack(pending)).cpu()
    names = [*(term.title for term in phase.terms), GRAD_NORM]
    finite = torch.isfinite(table)
    if config.trainer.precision == "fp16":
        finite[:, -1] = True  # the scaler skips such a step, and scales less
    if config.trainer.skip_nonfinite:
        kept = table[finite.all(1)]
        skipped = len(table) - len(kept)
        means = kept.mean(0) if len(kept) else torch.full((len(names),), math.nan)
        return dict(zip(names, means.tolist(), strict=True)) | {"skipped": float(skipped)}
    if not finite.all():
        row, column = (~finite).nonzero()[0].tolist()
        at = step - len(pending) + row
        path = config.out / f"nonfinite-step-{at:06d}.safetensors"
        if here.is_first:
            batch = {k: v.contiguous() for k, v in vars(task.stream.batch(at)).items() if v is not None}
            save_file(batch, path, metadata={"step": str(at), "seed": str(config.seed)})
        raise WorkFailed(
            f"step {at}: {names[column]} is not finite; its batch is in {path}; "
            f"the last checkpoint is untouched; try a lower trainer.lr, or --skip-nonfinite"
        )
    return dict(zip(names, table.mean(0).tolist(), strict=True))


def learning_rate(settings: TrainerConfig, step: int) -> float:
    """lr, times a ramp from 0 to 1 over the warm-up, times the schedule's decay from 1 to 0 over the whole training."""
    warmup = min(1.0, (step + 1) / max(settings.warmup_steps, 1))
    done = step / settings.num_steps
    decay = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}[settings.schedule]
    return settings.lr * warmup * decay
