"""The cost of one evaluation of a network."""

import statistics
import time

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from eval.results import Cost
from pipeline.networks import Network

NUM_TIMINGS = 20


@torch.no_grad()
def measure(network: Network, batch_size: int) -> Cost:
    """Parameters, FLOPs of one sample, latency at batch 1, and on a GPU the peak memory at `batch_size`."""
    flops = count_flops(network)
    return Cost(
        parameters=sum(p.numel() for p in network.parameters()),
        flops=flops,
        macs=flops // 2,
        latency_ms=_latency_ms(network),
        peak_memory_bytes=_peak_memory_bytes(network, batch_size),
    )


@torch.no_grad()
def count_flops(network: Network) -> int:
    """FLOPs of one evaluation of one sample, on any device, including "meta".

    torch's counter counts matrix products and convolutions, two operations per multiply-add.
    """
    with FlopCounterMode(display=False) as counter:
        network(*_inputs(network, 1))
    return int(counter.get_total_flops())


def _inputs(network: Network, batch_size: int) -> tuple[Tensor, Tensor, Tensor | None]:
    device = next(network.parameters()).device
    x = torch.zeros(batch_size, *network.config.shape, device=device)
    t = torch.full((batch_size,), 0.5, device=device)
    return x, t, t if network.config.second_time else None


def _latency_ms(network: Network) -> float:
    """Median of `NUM_TIMINGS` synchronised evaluations of one sample, after one to warm up."""
    inputs, seconds = _inputs(network, 1), []
    for _ in range(NUM_TIMINGS + 1):
        started = time.perf_counter()
        network(*inputs)
        if inputs[0].is_cuda:
            torch.cuda.synchronize(inputs[0].device)
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[1:])


def _peak_memory_bytes(network: Network, batch_size: int) -> int | None:
    """The most memory that torch allocated on the GPU, including weights; None on a CPU."""
    inputs = _inputs(network, batch_size)
    if not inputs[0].is_cuda:
        return None
    torch.cuda.reset_peak_memory_stats(inputs[0].device)
    network(*inputs)
    return torch.cuda.max_memory_allocated(inputs[0].device)
