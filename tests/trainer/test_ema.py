import pytest
import torch

from tests.problems import tiny_network
from trainer.ema import Ema


def value(ema: Ema) -> float:
    return ema.network.conv_out.weight.mean().item()


def test_the_start_has_half_its_weight_after_a_half_life() -> None:
    network = tiny_network()
    network.conv_out.weight.fill_(0.0)
    ema = Ema(network, half_life_images=1000, ramp_up=None)
    network.conv_out.weight.fill_(1.0)
    for step in range(1, 11):
        ema.update(network, 100, step * 100)
    assert value(ema) == pytest.approx(0.5, abs=1e-5)


def test_while_ramping_up_the_start_is_forgotten() -> None:
    network = tiny_network()
    network.conv_out.weight.fill_(0.0)
    ema = Ema(network, half_life_images=10**9, ramp_up=0.05)
    network.conv_out.weight.fill_(1.0)
    for step in range(1, 101):
        ema.update(network, 1, step)
    assert value(ema) > 0.99


def test_the_average_is_apart_from_the_network() -> None:
    network = tiny_network()
    ema = Ema(network, 1000)
    network.conv_out.weight.fill_(9.0)
    assert value(ema) < 1
    assert not any(p.requires_grad for p in ema.network.parameters())
    assert torch.is_tensor(ema.network.conv_out.weight)
