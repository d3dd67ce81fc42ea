"""One optimisation step: losses, gradients, the update, the averages."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.networks import Network
from trainer.checkpoints.checkpoint import State, trained_parameters
from trainer.checkpoints.companion import Companion
from trainer.checkpoints.ema import Ema
from trainer.checkpoints.sharding import whole
from trainer.config import TrainConfig, TrainerConfig
from trainer.distillation.objective import weighted
from trainer.distillation.random_draws import seed_dropout
from trainer.distillation.recipes import Phase
from trainer.distillation.step_input import StepInput
from trainer.distillation.terms import BaseTerm, TrainingOwner
from trainer.distributed import Ranks

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def initial_state(
    config: TrainConfig,
    network: Network,
    device: torch.device,
    owned: Mapping[str, nn.Module] | None = None,
    lay: Callable[[Network], object] = lambda network: None,
) -> State:
    """The state of a training of `network`, and of the networks that its terms own by their titles, before any step.

    `lay` is called with the network and each of its averages, to put them where they are trained.
    """
    settings = config.trainer
    network.train()
    averages = []
    for average in settings.ema:  # one after the other: none is whole beside another
        averages.append(Ema(network, average))
        lay(averages[-1].network)
    lay(network)
    optimizer = torch.optim.AdamW(
        trained_parameters(network),
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    # Half precision's gradients would underflow; bfloat16 has the range of float32.
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    terms = {term.title: term for term in config.recipe.terms}
    companions = {
        title: Companion(module, _own_optimizer(terms[title], module)) for title, module in (owned or {}).items()
    }
    return State(network, averages, optimizer, scaler, companions)


def _own_optimizer(term: BaseTerm, network: nn.Module) -> torch.optim.Optimizer | None:
    """AdamW without momentum, as discriminators are trained, for what a term trains."""
    if not isinstance(term, TrainingOwner):
        return None
    parameters = trained_parameters(network)
    return torch.optim.AdamW(parameters, lr=term.own_lr, betas=(0.0, 0.99), weight_decay=0.01, fused=True)


def begin_phase(state: State) -> None:
    """Copy the student into what is a copy of it, as it is when a phase begins."""
    for companion in state.owned.values():
        if companion.optimizer is None:
            companion.network.load_state_dict(state.network.state_dict())


def take_step(
    config: TrainConfig, ranks: Ranks, state: State, objective: nn.Module, phase: Phase, given: StepInput, step: int
) -> Tensor:
    """Take optimisation step `step` on this rank's input, changing `state`; the device is never waited for.

    Returns the unweighted losses and the gradient's norm before clipping, float32 [losses + 1].
    """
    settings, scaler = config.trainer, state.scaler
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(settings, step)
    if config.recipe.begins_phase(step, settings.num_steps):
        begin_phase(state)
    trained = [*_trained(state, phase, step)]
    for _, optimizer in trained:
        optimizer.zero_grad()
    losses = backward(config, ranks, objective, phase, given, step, scaler)
    norms = [_update(settings, network, optimizer, scaler) for network, optimizer in trained]
    scaler.update()
    for average in state.averages:
        average.update(state.network, settings.batch_size, (step + 1) * settings.batch_size)
    return torch.cat([losses, norms[0].detach().reshape(1)])


def _trained(state: State, phase: Phase, step: int) -> Iterator[tuple[nn.Module, torch.optim.Optimizer]]:
    """What takes `step`, with its optimiser: the student, if it is its turn, and what the terms of `phase` train."""
    if phase.trains_student(step):
        yield state.network, state.optimizer
    for term in phase.training:
        companion = state.owned[term.title]
        assert companion.optimizer is not None
        yield companion.network, companion.optimizer


def _update(
    settings: TrainerConfig, network: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> Tensor:
    """Clip the gradients of `network` and take its step; returns their norm before."""
    scaler.unscale_(optimizer)
    grad_norm = whole(nn.utils.clip_grad_norm_(network.parameters(), settings.max_grad_norm))
    if settings.skip_nonfinite and not scaler.is_enabled():  # the scaler skips such steps by itself
        # What the scaler tells a fused optimizer; torch's stubs do not declare it.
        optimizer.found_inf = (~torch.isfinite(grad_norm)).float()  # type: ignore[attr-defined]
    scaler.step(optimizer)
    return grad_norm


def backward(
    config: TrainConfig,
    ranks: Ranks,
    objective: nn.Module,
    phase: Phase,
    given: StepInput,
    step: int,
    scaler: torch.amp.GradScaler,
) -> Tensor:
    """Accumulate the gradients of the losses of `phase` on this rank's input; returns the losses, float32 [losses]."""
    settings, device = config.trainer, ranks.device
    share = settings.batch_size // ranks.world // settings.accumulate
    losses = torch.zeros(len(phase.weights), device=device)
    for part in range(settings.accumulate):
        seed_dropout(config.seed, step, (ranks.rank * settings.accumulate + part) * share)
        mine = given.rows(slice(part * share, (part + 1) * share))
        with _synchronised(objective, part == settings.accumulate - 1):
            # A cache would keep the weights of every block, which in shards are whole only for a moment.
            caches, dtype = settings.parallel == "ddp", PRECISIONS[settings.precision]
            with torch.autocast(device.type, dtype, settings.precision != "fp32", caches):
                values = objective(phase, mine.batch, mine.draws)
            total = weighted(phase, values, phase.trains_student(step)) / settings.accumulate
            scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        losses += values.detach() / settings.accumulate
    return losses


def _synchronised(objective: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Ranks all-reduce their gradients in the last part only."""
    if is_last or not isinstance(objective, DistributedDataParallel):
        return nullcontext()
    context: AbstractContextManager[None] = objective.no_sync()
    return context


def learning_rate(settings: TrainerConfig, step: int) -> float:
    """The learning rate of `step`: lr, warmed up linearly, times the schedule's decay over the whole training."""
    warmup = min(1.0, (step + 1) / max(settings.warmup_steps, 1))
    done = step / settings.num_steps
    decay = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}[settings.schedule]
    return settings.lr * warmup * decay
