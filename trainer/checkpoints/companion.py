"""A network that a term of a recipe owns: trained beside the student by its own optimiser, or a copy of it."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Companion:
    """The network, and its optimiser; without one it is copied from the student as a phase begins."""

    network: nn.Module
    optimizer: torch.optim.Optimizer | None
