"""The number of threads that a network's training is shared among on a CPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

SMALL = 1_000_000  # parameters
ASKED = "OMP_NUM_THREADS"  # the environment variable by which a user asks for a number


@contextmanager
def fitting_threads(network: nn.Module, device: torch.device) -> Iterator[None]:
    """One thread to train a small network on a CPU, unless the user asks for another number.

    On two cores (2026-11-27) the quickstart trained 1,056 images/s on one thread and 1,085 on two, which took the
    second core from other work. A network of 5 M parameters on 32x32 images trained 1.8 times faster on two, and even
    the digits network sampled, in batches of 256, 1.4 times faster.
    """
    threads = torch.get_num_threads()
    is_small = sum(parameter.numel() for parameter in network.parameters()) < SMALL
    if device.type == "cpu" and is_small and ASKED not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
