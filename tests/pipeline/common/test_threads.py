import pytest
import torch
from torch import nn

from pipeline.common.threads import ASKED, SMALL, fitting_threads

CPU, TINY, LARGE = torch.device("cpu"), nn.Linear(2, 2), nn.Linear(SMALL, 1, device="meta")


@pytest.fixture(autouse=True)
def three_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ASKED, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: counts[-1])
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    counts[:] = [3]


counts: list[int] = []


def threads_within(network: nn.Module, device: torch.device) -> int:
    with fitting_threads(network, device):
        within = counts[-1]
    assert counts[-1] == 3
    return within


def test_a_small_network_computes_on_one_thread_and_a_large_one_on_all() -> None:
    assert threads_within(TINY, CPU) == 1
    assert threads_within(LARGE, CPU) == 3


def test_a_gpu_and_a_user_who_asks_for_a_number_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads_within(TINY, torch.device("cuda")) == 3
    monkeypatch.setenv(ASKED, "3")
    assert threads_within(TINY, CPU) == 3
