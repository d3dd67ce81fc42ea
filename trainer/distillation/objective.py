"""What a step minimises, as one module: so that DDP sees one forward pass, whatever losses ask of the network."""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.flow.solver import Velocity
from pipeline.networks import Network
from trainer.distillation.random_draws import Draws
from trainer.distillation.recipes import Phase
from trainer.distillation.terms import Models


class Objective(nn.Module):
    """The losses of a phase, each a mean over the batch. Only the network in training is a part of it."""

    def __init__(self, network: Network, ema: Network | None = None, teacher: Velocity | None = None) -> None:
        super().__init__()
        self.network = network
        # In a tuple, so that they are neither trained nor kept in step.
        self._others = (ema, teacher)

    def forward(self, phase: Phase, batch: Any, draws: Draws) -> Tensor:
        """Float32 [terms], in their order."""
        ema, teacher = self._others
        models = Models(self.network, ema, teacher)
        return torch.stack([term(models, batch, draws).float() for term in phase.terms])


def weighted(phase: Phase, values: Tensor) -> Tensor:
    """The sum of the losses by their weights, which stay numbers: a tensor of them would be copied to the device."""
    return torch.stack([term.weight * value for term, value in zip(phase.terms, values, strict=True)]).sum()
