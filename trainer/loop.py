"""Stage 2: train() reads straight down. One loop trains students on trajectories and teachers on images."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline import pictures
from pipeline.config import differences, write_resolved
from pipeline.device import pick_device
from pipeline.errors import BadInput, WorkFailed
from pipeline.flow import uniform_times
from pipeline.networks import Network
from pipeline.noise import Stream, draw_labels, draw_noise
from pipeline.pictures import to_bytes
from pipeline.progress import bar, say
from pipeline.solver import Solver, integrate
from pipeline.store import sweep
from pipeline.teachers.teacher import NetworkVelocity
from trainer import checkpoint
from trainer.checkpoint import CheckpointInfo
from trainer.ema import Ema
from trainer.logging import JsonLog
from trainer.recipes import RECIPES, Recipe
from trainer.student import Student, sample
from trainer.task import Task, TrainConfig, TrainerConfig, prepare

NUM_PICTURES = 12
SAMPLES = "samples.png"


def train(config: TrainConfig) -> Path:
    """Train until `num_steps`, from the newest checkpoint in `config.out` if there is one; returns the last one.

    Raises:
        BadInput: the configuration is at odds with itself, the data or the run in `config.out`.
        WorkFailed: a loss is not finite (its batch is saved), or a shard is damaged.
    """
    device = pick_device(config.device)
    task, settings = prepare(config, device), config.trainer
    recipe, network = RECIPES[config.recipe], task.network
    network.train()
    ema = Ema(network, settings.ema_half_life_images, settings.ema_ramp_up)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
    )
    step = resume(config, task, ema, optimizer)
    if step == settings.num_steps and (config.out / SAMPLES).exists():
        say(f"{config.out} is complete: {step} steps of this configuration; nothing to do")
        return checkpoint.find(config.out)
    say(f"recipe {config.recipe}: {recipe.about}")
    log = open_run(config, step)
    pending: list[dict[str, Tensor]] = []
    last = time.monotonic()
    phase = recipe.phase(step, settings.num_steps)

    with bar(f"train {config.recipe}", settings.num_steps, step) as advance:
        while step < settings.num_steps:
            if phase is not recipe.phase(step, settings.num_steps):
                phase = recipe.phase(step, settings.num_steps)
                say(f"step {step}: from here on minimising {' + '.join(term.name for term in phase.terms)}")
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step)
            batch = task.stream.batch(step).to(device)
            rng = step_generator(config.seed, step)
            losses = {term.name: term(task.model, batch, rng) for term in phase.terms}
            total = torch.stack([term.weight * losses[term.name] for term in phase.terms]).sum()

            optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            grad_norm = nn.utils.clip_grad_norm_(network.parameters(), settings.max_grad_norm)
            optimizer.step()
            step += 1
            ema.update(network, settings.batch_size, step * settings.batch_size)

            pending.append({name: loss.detach() for name, loss in losses.items()} | {"grad_norm": grad_norm})
            save = step % settings.checkpoint_every == 0 or step == settings.num_steps
            if save or step % settings.log_every == 0:
                # The losses wait on the device until here: fetching them every step would stall it.
                means = fetch(config, task, step, pending)
                now = time.monotonic()
                rate = len(pending) * settings.batch_size / (now - last)
                log.write(step, **means, images_per_second=rate, lr=optimizer.param_groups[0]["lr"])
                shown = ", ".join(f"{term.name} {means[term.name]:.2e}" for term in phase.terms)
                advance(len(pending), f"{rate:.0f} images/s, {shown}")
                pending, last = [], now
            if save:
                info = CheckpointInfo(
                    step=step,
                    trains=recipe.trains,
                    recipe=config.recipe,
                    config=config.model_dump(mode="json"),
                    **task.origin,
                )
                checkpoint.save(config.out, info, network, ema, optimizer, settings.keep_checkpoints)
    task.stream.close()
    save_samples(config, recipe, ema.network, task.origin, device)
    return checkpoint.find(config.out)


def resume(config: TrainConfig, task: Task, ema: Ema, optimizer: torch.optim.Optimizer) -> int:
    """Restore the newest checkpoint in `config.out`, if there is one; returns the steps it has done.

    Raises:
        BadInput: it was made by another configuration or on other data.
    """
    found = checkpoint.find_all(config.out)
    if not found:
        return 0
    info = checkpoint.read_info(found[-1])
    ours, theirs = _identity(config.model_dump(mode="json")), _identity(info.config)
    ours["data_sha256"], theirs["data_sha256"] = task.origin.get("data_sha256"), info.data_sha256
    if fields := differences(theirs, ours):
        raise BadInput(f"{config.out} holds another run ({fields}); choose another folder or ask for that run")
    checkpoint.restore(found[-1], task.network, ema, optimizer)
    say(f"going on from {found[-1]}")
    return info.step


def open_run(config: TrainConfig, step: int) -> JsonLog:
    """Make the run's folder ready to go on after `step` steps: what it runs with, its log, nothing left aside.

    Raises:
        BadInput: the folder cannot be written.
    """
    try:
        write_resolved(config.out / "config.yaml", config, "train")
        sweep(config.out / "checkpoints")
        return JsonLog(config.out / "log.jsonl", step)
    except OSError as error:
        raise BadInput(f"{config.out}: wanted a folder that can be written ({error.strerror})") from error


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """What decides a run's weights: the configuration less where it runs and how often it tells."""
    trainer = {
        k: v for k, v in config["trainer"].items() if k not in {"log_every", "checkpoint_every", "keep_checkpoints"}
    }
    return {k: v for k, v in config.items() if k not in {"out", "device", "data"}} | {"trainer": trainer}


def fetch(config: TrainConfig, task: Task, step: int, pending: list[dict[str, Tensor]]) -> dict[str, float]:
    """The mean of each pending value of the steps up to `step`.

    Raises:
        WorkFailed: one is not finite; the batch of that step is saved beside the log.
    """
    for i, values in enumerate(pending):
        bad = [name for name, value in values.items() if not torch.isfinite(value)]
        if bad:
            at = step - len(pending) + i
            path = config.out / f"nonfinite-step-{at:06d}.safetensors"
            batch = {k: v.contiguous() for k, v in vars(task.stream.batch(at)).items() if v is not None}
            save_file(batch, path)
            raise WorkFailed(
                f"step {at}: {bad[0]} is not finite; its batch is in {path}; "
                f"the last checkpoint is untouched; try a lower trainer.lr"
            )
    names = pending[-1].keys()  # of the newest phase
    return {name: float(np.mean([values[name].item() for values in pending if name in values])) for name in names}


def learning_rate(settings: TrainerConfig, step: int) -> float:
    """lr, times a ramp from 0 to 1 over the warm-up, times a ramp from 1 to 0 over the whole training."""
    warmup = min(1.0, (step + 1) / max(settings.warmup_steps, 1))
    return settings.lr * warmup * (1 - step / settings.num_steps)


def step_generator(seed: int, step: int) -> torch.Generator:
    """A CPU generator that is a function of (seed, step), which also seeds dropout: a resumed run draws the same."""
    (state,) = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
    torch.manual_seed(int(state))
    return torch.Generator().manual_seed(int(state))


def save_samples(
    config: TrainConfig, recipe: Recipe, network: Network, origin: dict[str, Any], device: torch.device
) -> None:
    """Write samples.png: from the same noise, one row for each number of evaluations."""
    indices = range(NUM_PICTURES)
    noise = torch.from_numpy(draw_noise(config.seed, indices, network.config.shape, Stream.EVALUATION_NOISE)).to(device)
    label = None
    if network.config.num_classes:
        drawn = draw_labels(config.seed, indices, network.config.num_classes, Stream.EVALUATION_LABEL)
        label = torch.from_numpy(drawn).to(device)
    rows = {}
    if recipe.trains == "student":
        student = Student(network)
        for steps in (1, 2, 4):
            times = uniform_times(steps, origin["t_start"], origin["t_end"])
            rows[f"{steps} evaluation{'s' if steps > 1 else ''}"] = sample(student, noise, times, label)
    else:
        solver, t_start = Solver(name="rk4", num_steps=16), network.convention.t_start
        rows["rk4, 16 steps"] = integrate(
            NetworkVelocity(network), t_start * noise, uniform_times(1, t_start), label, solver
        ).states[-1]
    data_range = origin.get("data_range", (-1.0, 1.0))
    images = {title: to_bytes(x.cpu().numpy(), data_range) for title, x in rows.items()}
    pictures.save_rows(config.out / SAMPLES, images)
