"""Stage 2: one loop trains students on trajectories, and teachers on trajectories or images."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.common.config import differences, write_resolved
from pipeline.common.device import machine, peak_memory_bytes
from pipeline.common.environment import Environment
from pipeline.common.errors import BadInput, Stopped, WorkFailed
from pipeline.common.interrupt import Stop, stoppable
from pipeline.common.plural import counted
from pipeline.common.progress import bar, say
from pipeline.common.threads import fitting_threads
from pipeline.dataset.plan import Plan
from pipeline.networks import DiffusersNetwork, FlowNetwork, Network
from pipeline.storage.lease import Lease
from pipeline.storage.output import Output, check_output, hold_output
from pipeline.storage.store import open_store, sweep
from trainer import preview
from trainer.checkpoints import checkpoint, mirror, snapshots
from trainer.checkpoints.checkpoint import CheckpointInfo, Contents, State
from trainer.checkpoints.model import find_model
from trainer.checkpoints.sharding import shard
from trainer.config import TrainConfig
from trainer.data.prefetch import InPlace, Prefetcher
from trainer.distillation.objective import Objective
from trainer.distillation.recipes import Phase
from trainer.distributed import Ranks, join_ranks
from trainer.kernels import check_kernels, choose_kernels, compiles
from trainer.log import Log, check_sinks, open_log
from trainer.setup import INITS, Task, check_plan, completed, data_change, find_begun, prepare, read_input
from trainer.step import initial_state, learning_rate, take_step

CPU = torch.device("cpu")
GRAD_NORM = "grad_norm"
POLL_EVERY = 8  # steps: several ranks then agree on whether to stop or to save, which waits for the device
# Settings of the trainer that a resumed run may change.
FREE = {"log_every", "checkpoint_every", "checkpoint_minutes", "keep_checkpoints"}
FREE |= {"gradient_checkpointing", "compile", "tf32", "cudnn_benchmark", "accumulate", "skip_nonfinite", "num_steps"}
FREE |= {"parallel"}


def train(config: TrainConfig, stop: Stop | None = None) -> Path:
    """Train to `num_steps`, resuming from the newest checkpoint in `config.out`; returns the last checkpoint.

    It stops once `stop` is set, by default at a signal.

    Raises:
        BadInput: the configuration contradicts itself, the data or the run in `config.out`.
        WorkFailed: a loss is not finite (its batch is saved), a shard is damaged, or a checkpoint cannot be written.
        Stopped: it was asked to stop, and saved a checkpoint.
    """
    stopping = stoppable("stopping after a checkpoint") if stop is None else nullcontext(stop)
    with join_ranks(config.device) as ranks, stopping as stop:
        check_ranks(config, ranks.world)
        check_kernels(config, ranks.device)
        task = prepare(config, CPU if _is_sharded(config, ranks.world) else ranks.device)
        locations = [str(location) for location in (config.out, config.mirror) if location is not None]
        with hold_output(Output.TRAINING, *locations if ranks.is_first else ()) as leases:
            for lease in leases:
                lease.on_loss = stop.set
            with memory_errors_explained(config, ranks.world), fitting_threads(task.network, ranks.device):
                return _train(config, task, ranks, stop, leases)


@contextmanager
def memory_errors_explained(config: TrainConfig, world: int) -> Iterator[None]:
    """Turn a lack of memory into a `BadInput` that says in which parts a batch may fit."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        size, parts = config.trainer.batch_size, config.trainer.accumulate
        smaller = next((n for n in range(parts + 1, size // world + 1) if _shares_evenly(config, world, n)), None)
        advice = "take a smaller network or batch_size"
        if smaller is not None:
            advice = f"--set trainer.accumulate={smaller} takes parts of {size // world // smaller}, to the same result"
        raise BadInput(
            f"batch_size {size} in parts of {size // world // parts} does not fit into memory: {advice}; "
            "train --dry-run measures a step"
        ) from error


def _shares_evenly(config: TrainConfig, world: int, accumulate: int) -> bool:
    trainer = config.trainer.model_copy(update={"accumulate": accumulate})
    try:
        check_ranks(config.model_copy(update={"trainer": trainer}), world)
    except BadInput:
        return False
    return True


def _train(config: TrainConfig, task: Task, ranks: Ranks, stop: Stop, leases: Sequence[Lease]) -> Path:
    config = task.config
    settings, recipe, device = config.trainer, config.recipe, ranks.device
    network, state = task.network, initial_state(config, task.network, device, task.owned, _layer(config, ranks))
    is_sharded = _is_sharded(config, ranks.world)
    _pull(config, ranks)
    step = resume(config, task, state)
    if not ranks.agree(step):
        raise WorkFailed(
            f"{config.out}: its machines hold different checkpoints (this one step {step}): wanted a folder that all "
            "of them reach, or a mirror that can be written; remove those that the others lack"
        )
    if step == settings.num_steps and preview.is_saved(config.out / preview.FILE, network):
        say(f"{config.out} is complete: {counted(step, 'step')} of this configuration; nothing to do")
        return _finish(config, ranks)
    log = open_run(config, task, ranks, step)
    choose_kernels(settings)
    if isinstance(network, FlowNetwork) and compiles(config, device):
        network.compile()
    objective: nn.Module = Objective(network, state.averages[0].network, task.teacher, task.owned)
    if ranks.world > 1 and not is_sharded:
        # A network that a term owns is not used in the phases without the term, nor the student out of its turn.
        rests = any(phase.student_every > 1 for phase in recipe.phases)
        unused = bool(task.owned) and (rests or len(recipe.phases) > 1)
        objective = DistributedDataParallel(objective, broadcast_buffers=False, find_unused_parameters=unused)
    read = partial(read_input, config, task, ranks)
    pending: list[Tensor] = []
    phase, last = recipe.phase(step, settings.num_steps), time.monotonic()
    saved = last

    with (
        closing(log),
        (Prefetcher if device.type == "cuda" else InPlace)(read, step, settings.num_steps, device) as batches,
        bar(f"train {recipe.name}", settings.num_steps, step) as advance,
    ):
        while step < settings.num_steps:
            pending.append(take_step(config, ranks, state, objective, phase, batches.batch(step), step))
            step += 1
            ends_phase = step < settings.num_steps and recipe.phase(step, settings.num_steps) is not phase
            save = step % settings.checkpoint_every == 0 or step == settings.num_steps or ends_phase
            asked = due = False
            if ranks.world == 1 or step % POLL_EVERY == 0:
                late = time.monotonic() - saved > 60 * settings.checkpoint_minutes
                asked, due = ranks.any(stop.is_set(), late)
            if save or asked or due or step % settings.log_every == 0:
                # The losses wait on the device until here: fetching them every step would stall it.
                means = mean_losses(config, task, ranks, phase, step, pending)
                now = time.monotonic()
                rate = len(pending) * settings.batch_size / (now - last)
                stall, batches.stall_seconds = batches.stall_seconds / (now - last), 0.0
                log.write(
                    step,
                    **means,
                    **total_loss(phase, means),
                    images_seen=step * settings.batch_size,
                    images_per_second=rate,
                    stall=stall,
                    memory_bytes=peak_memory_bytes(device),
                    lr=state.optimizer.param_groups[0]["lr"],
                )
                shown = ", ".join(f"{t.title} {means[t.title]:.2e}" for t in phase.terms if t.title in means)
                advance(len(pending), f"{rate:.0f} images/s, {shown}")
                pending, last = [], now
                if (save or asked or due) and (ranks.is_first or is_sharded):
                    contents = checkpoint.collect(state)
                if (save or asked or due) and ranks.is_first:
                    for lease in leases:
                        lease.check()
                    _save(config, task, ranks, state, contents, step, log, has_snapshot=save or asked)
                    last = time.monotonic()
                saved = time.monotonic() if save or due else saved
                ranks.wait()
                if asked and step < settings.num_steps:
                    raise Stopped(stop.signal or signal.SIGTERM, f"stopped after step {step}, which is saved")
            if ends_phase:
                phase = recipe.phase(step, settings.num_steps)
                say(f"step {step}: from here on minimising {_formula(phase)}")
    task.stream.close()
    if ranks.is_first:
        preview.save(config.out / preview.FILE, config, state.averages[0].network, task.provenance)
    elif is_sharded and preview.can_draw(network):  # which takes all ranks
        preview.draw(config, state.averages[0].network, task.provenance)
    return _finish(config, ranks)


def _is_sharded(config: TrainConfig, world: int) -> bool:
    return config.trainer.parallel == "fsdp" and world > 1


def _layer(config: TrainConfig, ranks: Ranks) -> Callable[[Network], None]:
    """What puts a network on the device of this rank, or a share of it; it is there already where it is whole."""

    def lay(network: Network) -> None:
        if isinstance(network, DiffusersNetwork) and _is_sharded(config, ranks.world):
            shard(network, ranks.device)

    return lay


def _pull(config: TrainConfig, ranks: Ranks) -> None:
    """Download the mirror's newest checkpoint to every machine whose own is older."""
    if config.mirror is not None and ranks.is_first_here:
        mirror.pull(config.mirror, config.out)
    ranks.wait()


def _finish(config: TrainConfig, ranks: Ranks) -> Path:
    if config.mirror is not None and ranks.is_first:
        mirror.push(config.out, config.mirror)
    ranks.wait()
    return checkpoint.find(config.out)


def _save(
    config: TrainConfig,
    task: Task,
    ranks: Ranks,
    state: State,
    contents: Mapping[str, Contents],
    step: int,
    log: Log,
    has_snapshot: bool,
) -> None:
    info = CheckpointInfo(
        step=step,
        trains=config.recipe.trains,
        recipe=config.recipe.name,
        step_shift=config.recipe.step_shift,
        config=config.model_dump(mode="json"),
        environment=Environment.here(machine(ranks.device)),
        ranks=ranks.world,
        **vars(task.provenance),
    )
    checkpoint.save(config.out, info, contents, config.trainer.keep_checkpoints)
    if has_snapshot:  # not by the clock: snapshots are all kept
        snapshots.save(config.out, state, contents, step, config.trainer.batch_size)
    if config.mirror is not None and step < config.trainer.num_steps:
        try:
            mirror.push(config.out, config.mirror)
        except WorkFailed as error:
            say(f"warning: {error}; trying again with the next checkpoint")
    if log.takes_pictures and config.trainer.parallel == "ddp" and preview.can_draw(state.network):
        log.pictures(step, preview.draw(config, state.averages[0].network, task.provenance))


def total_loss(phase: Phase, means: Mapping[str, float]) -> dict[str, float]:
    """What `phase` minimises, as "loss"; nothing where every step was skipped, so that there are no `means`."""
    pairs = zip(phase.weights, phase.titles, strict=True)
    return {"loss": sum(weight * means[title] for weight, title in pairs)} if means.keys() >= {*phase.titles} else {}


def _formula(phase: Phase) -> str:
    return " + ".join(f"{term.weight:g} {term.title}" if term.weight != 1 else term.title for term in phase.terms)


def check_ranks(config: TrainConfig, world: int) -> None:
    """Raises `BadInput` unless `world` ranks can share a batch evenly, in parts that fit the recipe's strides."""
    size, parts = config.trainer.batch_size, world * config.trainer.accumulate
    strides = [term.stride for term in config.recipe.terms]
    if size % parts or any((size // parts) % stride for stride in strides):
        raise BadInput(
            f"batch_size {size} for {world} ranks in {config.trainer.accumulate} parts: wanted equal parts, each "
            f"a multiple of the recipe's strides {strides}"
        )


def check_train(config: TrainConfig, plan: Plan | None, begun: CheckpointInfo | None) -> None:
    """Check what is known before there are data, of `plan`: recipe, packages, weights, and the run that has `begun`.

    Raises:
        BadInput: see `train`.
    """
    check_ranks(config, 1)
    check_sinks(config)
    for location in filter(None, (config.out, config.mirror)):
        check_output(open_store(str(location)), Output.TRAINING)
    if config.start not in INITS and find_begun(config) is None:
        find_model(config.start)
    if plan is not None:
        check_plan(config, plan)
        config = completed(config, plan)
    if begun is not None:
        check_same(config, begun, {})


def resume(config: TrainConfig, task: Task, state: State) -> int:
    """Restore the newest intact checkpoint in `config.out`; returns its number of steps, 0 without checkpoints.

    Raises:
        BadInput: the checkpoints are of another configuration or other data, or none is intact.
    """
    faults: list[str] = []
    for folder in reversed(checkpoint.find_all(config.out)):
        try:
            info = checkpoint.read_info(folder)
            _check_same(config, task, info)
            checkpoint.restore(folder, info, state)
        except checkpoint.Damaged as error:
            faults.append(str(error))
            say(f"warning: {error}; trying the one before")
            continue
        say(f"resuming from {folder}")
        _announce_steps(config, info)
        return info.step
    if faults:
        raise BadInput(f"{config.out}: none of its checkpoints can be read ({faults[0]}); remove them to start again")
    return 0


def _check_same(config: TrainConfig, task: Task, info: CheckpointInfo) -> None:
    if info.data_sha256 != task.provenance.data_sha256:
        raise BadInput(f"{config.out}: {data_change(config, info.data_sha256)}: {_elsewhere(config)}")
    digests = ("teacher_sha256", "start_sha256")
    check_same(config, info, {name: (getattr(info, name), getattr(task.provenance, name)) for name in digests})


def check_same(config: TrainConfig, info: CheckpointInfo, digests: Mapping[str, tuple[str | None, str | None]]) -> None:
    """Raises `BadInput` unless `config` continues the training of `info`; `digests` are (there, asked) by name."""
    theirs = _identity(info.config) | {name: there for name, (there, _) in digests.items()}
    ours = _identity(config.model_dump(mode="json")) | {name: asked for name, (_, asked) in digests.items()}
    if fields := differences(theirs, ours):
        raise BadInput(f"{config.out} holds another run ({fields}); {_elsewhere(config)}, or ask for that run")
    if config.trainer.num_steps < info.step:
        raise BadInput(
            f"{config.out} has {info.step} steps; wanted {config.trainer.num_steps}: ask for more, not fewer"
        )


def _elsewhere(config: TrainConfig) -> str:
    return f"choose another --out, there with --start {quote(str(config.out))} to train on from its weights"


def _announce_steps(config: TrainConfig, info: CheckpointInfo) -> None:
    """Say what another number of steps than before does to the schedule."""
    settings, planned = config.trainer, info.config["trainer"]["num_steps"]
    if settings.num_steps == planned:
        return
    if settings.schedule == "constant" and len(config.recipe.phases) == 1:
        say(f"{settings.num_steps:,} steps instead of {planned:,}, as if so many had been asked at first")
        return
    rate = learning_rate(settings, info.step)
    say(
        f"note: {settings.num_steps:,} steps instead of {planned:,}: the schedule and the phases are those of "
        f"{settings.num_steps:,} steps from here on, at a learning rate of {rate:.2g}; a new run with "
        f"--start {quote(str(config.out))} has a schedule of its own"
    )


def open_run(config: TrainConfig, task: Task, ranks: Ranks, step: int) -> Log:
    """Prepare the run's folder to continue after `step` steps: write the configuration, remove leftovers, open the log.

    Raises:
        BadInput: the folder cannot be written.
    """
    if not ranks.is_first:
        return Log()
    try:
        log = open_log(config, step)  # first: it marks the folder as a training's
        write_resolved(config.out / "config.yaml", config, "train")
        sweep(config.out / "checkpoints")
        (config.out / preview.FILE).unlink(missing_ok=True)  # of fewer steps
    except OSError as error:
        raise BadInput(f"{config.out}: wanted a folder that can be written ({error.strerror})") from error
    say(f"recipe {config.recipe.name}: {config.recipe.about}")
    for note in task.notes:
        say(note)
    if step == 0:
        say(f"network: {counted(task.num_parameters, 'parameter')}, {task.init_source}")
    phase = config.recipe.phase(step, config.trainer.num_steps)
    say(f"step {step}: minimising {_formula(phase)}")
    return log


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that decides the weights: not where it runs, saves and logs.

    What files decide is compared by their digests, wherever they lie.
    """
    trainer = {k: v for k, v in config["trainer"].items() if k not in FREE}
    elsewhere = {"out", "device", "data", "images", "teacher", "mirror", "tensorboard", "wandb"}
    start = config["start"] if config["start"] in INITS else "the weights of a model"
    # The phases alone train; a recipe's other keys choose it, or how its student is sampled.
    recipe = {k: v for k, v in config["recipe"].items() if k not in {"step_shift", "in_few_dimensions"}}
    decisive = {k: v for k, v in config.items() if k not in elsewhere}
    return decisive | {"trainer": trainer, "start": start, "recipe": recipe}


def mean_losses(
    config: TrainConfig, task: Task, ranks: Ranks, phase: Phase, step: int, pending: list[Tensor]
) -> dict[str, float]:
    """The means, over ranks and steps, of the pending losses and gradient norms [losses + 1] before `step`.

    Raises:
        WorkFailed: a value is not finite; the batch of its step is saved beside the log.
    """
    table = ranks.mean(torch.stack(pending)).cpu()
    names = [*phase.titles, GRAD_NORM]
    finite = torch.isfinite(table)
    skipped = torch.zeros(len(table), dtype=torch.bool)
    if config.trainer.precision == "fp16":
        skipped = finite[:, :-1].all(1) & ~finite[:, -1]  # the scaler skips such a step, and scales less
    if config.trainer.skip_nonfinite:
        skipped = ~finite.all(1)
    if not finite[~skipped].all():
        row, column = (~finite & ~skipped[:, None]).nonzero()[0].tolist()
        at = step - len(pending) + row
        path = config.out / f"nonfinite-step-{at:06d}.safetensors"
        if ranks.is_first:
            batch = {k: v.contiguous() for k, v in vars(task.stream.batch(at)).items() if v is not None}
            save_file(batch, path, metadata={"step": str(at), "seed": str(config.seed)})
        raise WorkFailed(
            f"step {at}: {names[column]} is not finite; its batch is in {path}; "
            f"the last checkpoint is untouched; try a lower trainer.lr, or --skip-nonfinite"
        )
    num_skipped = int(skipped.sum())
    if num_skipped:
        say(f"step {step}: {num_skipped} of the last {len(table)} steps skipped: their gradients were not finite")
    # A number that is none would make the log unreadable: where every step was skipped there is no mean.
    means = {} if skipped.all() else dict(zip(names, table[~skipped].mean(0).tolist(), strict=True))
    counts = config.trainer.skip_nonfinite or config.trainer.precision == "fp16"
    return means | ({"skipped": float(num_skipped)} if counts else {})
