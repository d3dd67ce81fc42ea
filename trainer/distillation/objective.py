"""The losses of a step as one module, so that DDP sees one forward pass however often losses call the network."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.flow.solver import Velocity
from pipeline.networks import Network
from trainer.data.stream import Batch
from trainer.distillation.models import Models
from trainer.distillation.queries import evaluate
from trainer.distillation.random_draws import Draws
from trainer.distillation.recipes import Phase
from trainer.distillation.terms import BaseTerm


class Objective(nn.Module):
    """The losses of a phase, each a mean over the batch. Only the network in training is a part of it."""

    def __init__(self, network: Network, ema: Network | None = None, teacher: Velocity | None = None) -> None:
        super().__init__()
        self.network = network
        # In a tuple, so that they are no submodules: neither trained nor synchronised.
        self._others = (ema, teacher)

    def forward(self, phase: Phase, batch: Batch, draws: Draws) -> Tensor:
        """The unweighted losses of the terms of `phase`, float32 [terms]."""
        ema, teacher = self._others
        models = Models(self.network, ema, teacher)
        terms: Sequence[BaseTerm] = phase.terms
        losses = [
            term.compute(models, batch.rows(term.rows), draws.rows(term.rows).of(position))
            for position, term in enumerate(terms)
        ]
        return torch.stack([values.float().mean() for values in evaluate(losses, models.answer)])


def weighted(phase: Phase, values: Tensor) -> Tensor:
    """The weighted sum of the losses [terms]. Weights stay numbers: a tensor would be copied to the device."""
    return torch.stack([term.weight * value for term, value in zip(phase.terms, values, strict=True)]).sum()
