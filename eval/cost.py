"""What one evaluation of a network costs."""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.networks import Network


@dataclass(frozen=True)
class Cost:
    """Parameters, and floating-point operations and multiply-adds of one evaluation of one sample."""

    parameters: int
    flops: int
    macs: int


@torch.no_grad()
def measure(network: Network) -> Cost:
    """By torch's own counter, which counts matrix products and convolutions, two operations a multiply-add."""
    config = network.config
    device = next(network.parameters()).device
    x = torch.zeros(1, *config.shape, device=device)
    t = torch.zeros(1, device=device)
    with FlopCounterMode(display=False) as counter:
        network(x, t, t if config.second_time else None)
    flops = counter.get_total_flops()
    return Cost(sum(p.numel() for p in network.parameters()), flops, flops // 2)
