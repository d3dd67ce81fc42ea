"""Flows with known solutions, and the smallest networks, that the tests are made of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from pipeline import networks
from pipeline.dataset.manifest import Manifest
from pipeline.flow.path import match_dims
from pipeline.generation.generate import GenerateConfig, generate
from pipeline.networks import DhariwalUNetConfig, FlowNetwork, FlowNetworkConfig, MlpConfig
from pipeline.networks.song import SongUNetConfig
from pipeline.networks.unet import UNet, UNetConfig
from pipeline.teachers.teacher import Teacher
from trainer.distillation.models import differentiate
from trainer.distillation.queries import Loss, Query, evaluate
from trainer.distillation.student import Student

MEAN, STD = 0.3, 0.4
SHAPE = (1, 4, 4)


@dataclass(frozen=True)
class GaussianFlow:
    """The rectified flow from noise to data that is N(mean, std^2) in every component, solved in closed form.

    At time t the marginal is N((1 - t) mean, S(t)) with S(t) = (1 - t)^2 std^2 + t^2, and a trajectory keeps its
    place in units of sqrt(S).
    """

    mean: float = MEAN
    std: float = STD

    def variance(self, t: Tensor) -> Tensor:
        return (1 - t) ** 2 * self.std**2 + t**2

    def state(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The state at s [B] of the trajectories that are at `x_t` [B, ...] at t [B]: the exact G."""
        t, s = match_dims(t, x_t), match_dims(s, x_t)
        scale = (self.variance(s) / self.variance(t)).sqrt()
        return (1 - s) * self.mean + scale * (x_t - (1 - t) * self.mean)

    def velocity(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        t = match_dims(t, x)
        slope = (t - (1 - t) * self.std**2) / self.variance(t)
        return -self.mean + slope * (x - (1 - t) * self.mean)

    def teacher(self) -> Teacher:
        return Teacher("gaussian", "0" * 64, self.velocity, SHAPE)


@dataclass(frozen=True)
class MixtureFlow:
    """The rectified flow to data that is, in every component, an equal mixture of N(mean, std^2) over `means`."""

    means: tuple[float, ...] = (-0.6, 0.1, 0.8)
    std: float = 0.15

    def velocity(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """E[noise - data | x_t]."""
        t = match_dims(t, x)[..., None]
        variance = (1 - t) ** 2 * self.std**2 + t**2
        means = torch.tensor(self.means, dtype=x.dtype)
        away = x[..., None] - (1 - t) * means
        weights = (-(away**2) / (2 * variance)).softmax(-1)
        return (weights * ((t - (1 - t) * self.std**2) / variance * away - means)).sum(-1)


class ExactStudent(nn.Module):
    """The student that a Gaussian flow's distillation is looking for."""

    def __init__(self, flow: GaussianFlow) -> None:
        super().__init__()
        self.flow = flow

    def mean_velocity(self, x_t: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
        step = match_dims(s - t, x_t)
        far = (self.flow.state(x_t, t, s) - x_t) / torch.where(step == 0, 1.0, step)
        return torch.where(step == 0, self.flow.velocity(x_t, t), far)

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
        return self.flow.state(x_t, t, s)


def loss_values(loss: Loss, student: Student) -> Tensor:
    """The values of `loss` [B], where `student` answers its queries one by one."""

    def answer(query: Query) -> Tensor:
        assert query.s is not None
        with torch.set_grad_enabled(query.source in ("live", "held-ema")):
            if query.tangent is not None:
                return differentiate(student.mean_velocity, query)
            return student.mean_velocity(query.x, query.t, query.s, query.label)

    return evaluate([loss], lambda queries: [answer(query) for query in queries])[0]


def gaussian(device: torch.device) -> Teacher:
    """A factory for `--teacher tests.support.problems:gaussian`."""
    return GaussianFlow().teacher()


def tiny_config(**changes: Any) -> SongUNetConfig:
    """The smallest network that has every part: two levels, attention, four channels."""
    small: dict[str, object] = {
        "resolution": 4,
        "image_channels": 1,
        "channels": 8,
        "channel_mult": (1, 2),
        "num_blocks": 1,
        "attention_resolutions": (2,),
        "time_scale": 10.0,
    }
    return SongUNetConfig.model_validate({**small, **changes})


def tiny_network(seed: int = 0, **changes: Any) -> UNet:
    """A tiny network whose output depends on all of its parts (its own start is near zero)."""
    return shaken(tiny_config(**changes), seed)


@overload
def shaken(config: UNetConfig, seed: int = 0) -> UNet: ...


@overload
def shaken(config: FlowNetworkConfig, seed: int = 0) -> FlowNetwork: ...


def shaken(config: FlowNetworkConfig, seed: int = 0) -> FlowNetwork:
    """A network of `config` whose output depends on all of its parts."""
    torch.manual_seed(seed)
    network = networks.build(config).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if name != "gate_s":
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


NCSN = {"time_embedding": "fourier", "encoder": "residual", "resample_filter": (1, 3, 3, 1)}
FAMILIES: dict[str, FlowNetworkConfig] = {
    "mlp": MlpConfig(shape=(2, 3), width=8, num_blocks=2, channels=8, num_classes=3),
    "ddpm++": tiny_config(num_classes=3, augment_dim=2),
    "ncsn++": tiny_config(resolution=8, channel_mult=(1, 2, 2), num_classes=3, augment_dim=2, **NCSN),
    "skips": tiny_config(resolution=8, channel_mult=(1, 2, 2), **{**NCSN, "encoder": "skip", "decoder": "skip"}),
    "adm": DhariwalUNetConfig(
        resolution=8,
        image_channels=1,
        channels=16,
        channel_mult=(1, 2),
        num_blocks=1,
        attention_resolutions=(4,),
        channels_per_head=8,
        num_classes=3,
        augment_dim=2,
    ),
}


def with_second_time(config: FlowNetworkConfig) -> FlowNetworkConfig:
    return config.model_copy(update={"second_time": True})


def save_tiny_teacher(path: Path, seed: int = 0, **changes: Any) -> Path:
    """A tiny random teacher in our file format."""
    networks.save(path, tiny_network(seed, **changes))
    return path


def make_data(root: Path, **changes: Any) -> Path:
    """Trajectories of a tiny teacher, a few dozen in a few blocks, made in this process: the folder of the data set."""
    values = {
        "teacher": str(save_tiny_teacher(root / "tiny.safetensors")),
        "n": 40,
        "out": root / "data",
        "states": 3,
        "executor": "inline",
        "solver": {"name": "rk4", "num_steps": 4},
        "shard_size": 32,
        "batch_size": 8,
        "block_size": 4,
    }
    generate(GenerateConfig.model_validate(values | changes))
    return root / "data"


def folder_of(manifest: Manifest) -> Path:
    """Where a local data set lies."""
    return Path(manifest.store.location)


def shard_bytes(manifest: Manifest) -> dict[str, bytes]:
    """The shards of a data set by name."""
    store = manifest.store
    return store.read_all(sorted(name for name in store.sizes() if name.endswith(".tar")))
