"""The losses of a step as one module, so that DDP sees one forward pass however often losses call the network."""

from collections.abc import Mapping, Sequence

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
    """The losses of a phase, each a mean over the batch. Only networks in training are a part of it.

    `owned` are the networks of the recipe's terms, by their titles.
    """

    def __init__(
        self,
        network: Network,
        ema: Network | None = None,
        teacher: Velocity | None = None,
        owned: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self._owned = dict(owned or {})
        self.trained = nn.ModuleList(self._owned.values())
        # In a tuple, so that they are no submodules: neither trained nor synchronised.
        self._others = (ema, teacher)

    def forward(self, phase: Phase, batch: Batch, draws: Draws) -> Tensor:
        """The unweighted losses of the terms of `phase`, then those of the networks that they train, float32."""
        ema, teacher = self._others
        models = Models(self.network, ema, teacher, self._owned)
        terms: Sequence[BaseTerm] = phase.terms
        losses = [
            term.compute(models, batch.rows(term.rows), draws.rows(term.rows).of(position))
            for position, term in enumerate(terms)
        ]
        values = [value.float() for value in evaluate(losses, models.answer)]
        of_terms = [value.mean() if value.ndim == 1 else value[0].mean() for value in values]
        return torch.stack(of_terms + [value[1].mean() for value in values if value.ndim == 2])


def weighted(phase: Phase, values: Tensor, student: bool = True) -> Tensor:
    """The weighted sum of the losses, without those of the student if it is not its turn.

    Weights stay numbers: a tensor would be copied to the device.
    """
    sums = [weight * value for weight, value in zip(phase.weights, values, strict=True)]
    return torch.stack(sums if student else sums[len(phase.terms) :]).sum()
