import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline import networks
from pipeline.common.errors import BadInput
from pipeline.networks import Network
from tests.support.problems import tiny_network
from trainer.checkpoints.ema import Ema, EmaConfig, Snapshot, beta, combination, exponent, profile_error, reconstruct

WIDTHS = (0.05, 0.10)


def value(ema: Ema) -> float:
    return ema.network.state_dict()["conv_out.weight"].mean().item()


def averaged(config: EmaConfig, start: float, values: Iterable[float], batch_size: int = 1) -> float:
    """The average of a weight that is `start` and then, after each step, one of `values`."""
    network = tiny_network()
    network.conv_out.weight.fill_(start)
    ema = Ema(network, config)
    for step, number in enumerate(values, start=1):
        network.conv_out.weight.fill_(number)
        ema.update(network, batch_size, step * batch_size)
    return value(ema)


def harmonic(n: int) -> float:
    return sum(1 / k for k in range(1, n + 1))


def test_the_start_has_half_its_weight_after_a_half_life() -> None:
    config = EmaConfig(half_life_images=1000)
    assert averaged(config, 0.0, [1.0] * 10, batch_size=100) == pytest.approx(0.5, abs=1e-5)


def test_while_ramping_up_the_start_is_forgotten() -> None:
    assert averaged(EmaConfig(half_life_images=10**9, ramp_up=0.05), 0.0, [1.0] * 100) > 0.99


def test_while_ramping_up_the_half_life_is_a_part_of_the_images_seen() -> None:
    config = EmaConfig(half_life_images=10**9, ramp_up=2.0)
    assert averaged(config, 1.0, [0.0] * 50) == pytest.approx(0.5 ** (harmonic(50) / 2), rel=1e-5)


def test_a_ramp_ends_at_the_half_life() -> None:
    config = EmaConfig(half_life_images=10, ramp_up=1.0)
    assert averaged(config, 1.0, [0.0] * 30) == pytest.approx(0.5 ** (harmonic(10) + 20 / 10), rel=1e-5)


def test_a_constant_decay_is_a_geometric_sum_whatever_the_batch() -> None:
    decay, n = 0.9, 40
    lag = decay / (1 - decay) * (1 - decay**n)
    for batch_size in (1, 64):
        found = averaged(EmaConfig(decay=decay), 0.0, range(1, n + 1), batch_size)
        assert found == pytest.approx(n - lag, rel=1e-5)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.10, 0.25])
def test_a_power_average_is_the_sum_its_profile_says(sigma_rel: float) -> None:
    n, gamma = 60, exponent(sigma_rel)
    values = np.random.default_rng(0).standard_normal(n)
    weights = np.diff((np.arange(n + 1) / n) ** (gamma + 1))  # the integrals of p_n over each step
    assert averaged(EmaConfig(sigma_rel=sigma_rel), 1e6, values, 32) == pytest.approx(weights @ values, abs=1e-6)


def test_a_power_average_forgets_the_start_in_its_first_step() -> None:
    assert averaged(EmaConfig(sigma_rel=0.1), 1e6, [3.0], batch_size=64) == 3.0


def test_a_power_average_is_over_images_whatever_the_batch() -> None:
    config, values = EmaConfig(sigma_rel=0.1), [1.0, -2.0, 5.0]
    twice = [number for number in values for _ in range(2)]
    assert averaged(config, 0.0, values, 64) == pytest.approx(averaged(config, 0.0, twice, 32), rel=1e-5)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.10, 0.20])
def test_a_power_average_is_as_wide_as_was_asked(sigma_rel: float) -> None:
    n, network = 1000, tiny_network()
    ema = Ema(network, EmaConfig(sigma_rel=sigma_rel))
    for step in range(1, n + 1):
        network.conv_out.weight.fill_(step / n)
        network.conv_in.weight.fill_((step / n) ** 2)
        ema.update(network, 8, 8 * step)
    mean, mean_square = value(ema), ema.network.state_dict()["conv_in.weight"].mean().item()
    assert math.sqrt(mean_square - mean**2) == pytest.approx(sigma_rel, rel=1e-3)


def test_the_exponents_are_those_of_the_paper() -> None:
    assert exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert exponent(0.10) == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("sigma_rel", [0.001, 0.01, 0.1, 0.2, 0.2799])
def test_an_exponent_gives_its_width_back(sigma_rel: float) -> None:
    gamma = exponent(sigma_rel)
    assert gamma > 0
    assert math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) == pytest.approx(sigma_rel, rel=1e-12)


@pytest.mark.parametrize("sigma_rel", [-0.1, 0.0, 0.28, math.nan])
def test_a_width_that_no_profile_has_is_refused(sigma_rel: float) -> None:
    with pytest.raises(BadInput, match=r"between 0 and 0\.28"):
        exponent(sigma_rel)


def test_averages_of_every_kind_are_apart_from_the_network_and_from_each_other() -> None:
    network = tiny_network().train().requires_grad_(True)
    configs = [EmaConfig(decay=0.5), EmaConfig(), EmaConfig(sigma_rel=0.1)]
    emas = [Ema(network, config) for config in configs]
    before = value(emas[0])
    with torch.no_grad():
        network.conv_out.weight.fill_(9.0)
    assert [value(ema) for ema in emas] == [before] * 3
    for ema in emas:
        ema.update(network, 64, 128)
    kept = [beta(config, 64, 128) for config in configs]
    assert [value(ema) for ema in emas] == pytest.approx([b * before + (1 - b) * 9.0 for b in kept], rel=1e-5)
    for ema in emas:
        assert not ema.network.training
        assert not any(p.requires_grad for p in ema.network.parameters())


def test_an_average_is_the_papers_unless_told_otherwise() -> None:
    assert EmaConfig() == EmaConfig(name="ema", half_life_images=10_000_000, ramp_up=0.05)
    assert EmaConfig(half_life_images=1000).ramp_up is None
    assert EmaConfig(decay=0.999).half_life_images is None


@pytest.mark.parametrize("config", [{}, {"decay": 0.9}, {"half_life_images": 10.0}, {"sigma_rel": 0.1, "name": "w-10"}])
def test_a_configuration_comes_back_from_what_it_was_written_as(config: dict[str, Any]) -> None:
    written = EmaConfig.model_validate(config)
    assert EmaConfig.model_validate_json(written.model_dump_json()) == written


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"decay": 0.9, "sigma_rel": 0.1}, "wanted one of .*; decay and sigma_rel are given"),
        ({"decay": 0.9, "ramp_up": 0.05}, "ramp_up shortens a half-life"),
        ({"ramp_up": 0.05}, "ramp_up shortens a half-life"),
        ({"decay": 1.0}, "less than 1"),
        ({"half_life_images": 0}, "greater than 0"),
        ({"sigma_rel": 0.3}, "less than 0.28"),
        ({"name": "../ema"}, "pattern"),
        ({"half_life": 10}, "Extra inputs"),
    ],
)
def test_misuse_of_the_configuration_has_one_clear_message(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said) as caught:
        EmaConfig.model_validate(config)
    assert caught.value.error_count() == 1


def pairs(num: int, widths: Sequence[float] = WIDTHS) -> list[tuple[float, float]]:
    return [(k / num, width) for k in range(1, num + 1) for width in widths]


def test_a_snapshot_of_what_is_asked_is_taken_as_it_is() -> None:
    weights = combination(pairs(8), 1.0, 0.10)
    assert weights == pytest.approx([0.0] * 15 + [1.0], abs=1e-12)
    assert profile_error(pairs(8), 1.0, 0.10) < 1e-7


def test_the_unit_of_images_does_not_matter() -> None:
    scaled = [(images * 5e7, width) for images, width in pairs(8)]
    assert combination(scaled, 5e7, 0.07) == pytest.approx(combination(pairs(8), 1.0, 0.07), rel=1e-9)


def test_the_error_of_a_profile_is_its_distance_from_the_one_asked_for() -> None:
    t = (np.arange(100_000) + 0.5) / 100_000

    def profile(images: float, sigma_rel: float) -> Any:
        gamma = exponent(sigma_rel)
        return np.where(t <= images, (gamma + 1) * (t / images) ** gamma / images, 0)

    wanted = profile(1.0, 0.15)
    weights = combination(pairs(4), 1.0, 0.15)
    combined = sum(weight * profile(*pair) for weight, pair in zip(weights, pairs(4), strict=True))
    distance = np.linalg.norm(combined - wanted) / np.linalg.norm(wanted)
    assert profile_error(pairs(4), 1.0, 0.15) == pytest.approx(distance, rel=1e-3)


def test_no_other_weights_of_sum_one_are_better() -> None:
    weights = combination(pairs(2), 1.0, 0.07)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    four, two = profile_error(pairs(4), 1.0, 0.07), profile_error(pairs(2), 1.0, 0.07)
    assert four < two < profile_error(pairs(2, widths=[0.10]), 1.0, 0.07)


def test_the_same_snapshot_twice_shares_its_weight() -> None:
    once, twice = combination(pairs(4), 1.0, 0.07), combination([*pairs(4), *pairs(4)], 1.0, 0.07)
    assert twice == pytest.approx(np.tile(once / 2, 2), abs=1e-9)


def test_an_average_needs_snapshots_and_images() -> None:
    with pytest.raises(BadInput, match=r"at least two snapshots .*, got 1"):
        combination([(1.0, 0.05)], 1.0, 0.07)
    with pytest.raises(BadInput, match="positive numbers"):
        profile_error([(0.0, 0.05), (1.0, 0.05)], 1.0, 0.07)


def trained(folder: Path, asked: float, num_steps: int = 128, every: int = 16) -> tuple[list[Snapshot], Network]:
    """Snapshots of `WIDTHS` from a training whose last layer swings, and the average of width `asked` it kept."""
    network, rng = tiny_network(), torch.Generator().manual_seed(1)
    phases = 2 * math.pi * torch.rand(network.conv_out.weight.shape, generator=rng)
    emas = [Ema(network, EmaConfig(sigma_rel=width)) for width in (*WIDTHS, asked)]
    snapshots = []
    for step in range(1, num_steps + 1):
        network.conv_out.weight.copy_(torch.sin(12 * step / num_steps + phases))
        for ema in emas:
            ema.update(network, 32, 32 * step)
        if step % every == 0:
            for width, ema in zip(WIDTHS, emas, strict=False):
                snapshots.append(Snapshot(32 * step, width, folder / f"{step}-{width}.safetensors"))
                networks.save(snapshots[-1].path, ema.network)
    return snapshots, emas[-1].network


@pytest.mark.parametrize(
    ("asked", "tolerance"), [(0.03, 0.03), (0.05, 1e-6), (0.07, 0.003), (0.10, 1e-6), (0.15, 0.003), (0.20, 0.01)]
)
def test_a_reconstruction_is_the_average_that_was_kept(tmp_path: Path, asked: float, tolerance: float) -> None:
    snapshots, kept = trained(tmp_path, asked)
    num_images, gamma = snapshots[-1].num_images, exponent(asked)
    state = reconstruct(snapshots, num_images, asked)
    error = (state["conv_out.weight"] - kept.state_dict()["conv_out.weight"]).abs().max().item()
    assert error < tolerance
    fit = profile_error([(each.num_images, each.sigma_rel) for each in snapshots], num_images, asked)
    # Cauchy and Schwarz: no weight here is ever larger than 1, and |p|^2 = (gamma + 1)^2 / (2 gamma + 1).
    assert error < fit * (gamma + 1) / math.sqrt(2 * gamma + 1) + 1e-6


def test_what_a_training_left_alone_comes_back_bit_for_bit(tmp_path: Path) -> None:
    snapshots, kept = trained(tmp_path, 0.03)  # whose large weights of both signs a sum in fp32 would not cancel
    state = reconstruct(snapshots, snapshots[-1].num_images, 0.03)
    expected = kept.state_dict()
    assert state.keys() == expected.keys()
    moved = [name for name, tensor in expected.items() if not torch.equal(state[name], tensor)]
    assert moved == ["conv_out.weight"]
    assert all(tensor.dtype == torch.float32 for tensor in state.values())


def test_snapshots_of_different_networks_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, channels in zip(paths, (8, 16), strict=True):
        networks.save(path, tiny_network(channels=channels))
    with pytest.raises(BadInput, match=r"b\.safetensors: another network than .*a\.safetensors"):
        reconstruct([Snapshot(1, 0.05, paths[0]), Snapshot(1, 0.10, paths[1])], 1, 0.07)


def test_a_damaged_snapshot_is_refused(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    networks.save(good, tiny_network())
    bad.write_bytes(good.read_bytes()[:-10])
    with pytest.raises(BadInput, match=r"bad\.safetensors"):
        reconstruct([Snapshot(1, 0.05, good), Snapshot(1, 0.10, bad)], 1, 0.07)
    with pytest.raises(BadInput, match=r"none\.safetensors"):
        reconstruct([Snapshot(1, 0.05, good), Snapshot(1, 0.10, tmp_path / "none.safetensors")], 1, 0.07)
