"""How far two batches of states are apart: one value per sample, [B]."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from pipeline.common.config import Unit
from pipeline.common.errors import BadInput
from pipeline.common.progress import say
from pipeline.storage.hashing import file_sha256
from pipeline.teachers import published
from pipeline.teachers.conversion import load_archive, unprefixed
from pipeline.teachers.published import Unavailable

Distance = Callable[[Tensor, Tensor], Tensor]

# c of the pseudo-Huber distance, per root component (Song & Dhariwal 2023, arXiv 2310.14189, Section 3.3).
HUBER_C = 0.00054
# The backbones that lpips takes from torchvision: the file that torch's hub keeps of each.
BACKBONES = {"squeeze": "squeezenet1_1-b8a52dc0.pth", "alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}


class DistanceConfig(BaseModel):
    """A distance: `l2` is the mean square, `huber` the pseudo-Huber distance, `lpips-*` the perceptual distances.

    LPIPS (Zhang et al. 2018, arXiv 1801.03924) sees images of 1 or 3 channels, resized to `resize` pixels first: its
    networks halve an image five times, so that small ones are enlarged, to 64 in the paper.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["l2", "huber", "lpips-squeeze", "lpips-alex", "lpips-vgg"] = Field(
        default="l2", description="Mean square, pseudo-Huber, or LPIPS with its backbone."
    )
    resize: Annotated[int | None, Unit("pixels")] = Field(
        default=None, ge=32, description="Side to which images are resized for LPIPS; by default they are not."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, values: object) -> object:
        return {"name": values} if isinstance(values, str) else values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.resize is not None and not self.is_perceptual:
            raise ValueError(f"distance {self.name}: resize is for lpips")
        return self

    @property
    def is_perceptual(self) -> bool:
        return self.name.startswith("lpips-")

    def prepare(self, shape: tuple[int, ...]) -> None:
        """Load what the distance needs, before any work is done.

        Raises:
            BadInput: samples of `shape` are no images, or a network's weights are not here.
        """
        if not self.is_perceptual:
            return
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise BadInput(f"distance {self.name}: wanted images of 1 or 3 channels; samples are {list(shape)}")
        if min(shape[1:]) < 32 and self.resize is None:
            raise BadInput(f"distance {self.name}: images of {shape[1]} pixels are too small for it; set resize: 64")
        _lpips(self.name.removeprefix("lpips-"), torch.device("cpu"))
        say(f"distance {self.name}: {_find_backbone(self.name.removeprefix('lpips-'))}, sha256 {self.weights_sha256}")

    @property
    def weights_sha256(self) -> str | None:
        """The sha256 of the file of a perceptual distance's backbone; None for the other distances."""
        return file_sha256(_find_backbone(self.name.removeprefix("lpips-"))) if self.is_perceptual else None

    def __call__(self, x: Tensor, target: Tensor) -> Tensor:
        """[B, ...], [B, ...] -> [B]."""
        if self.name == "l2":
            return squared_error(x, target)
        if self.name == "huber":
            return huber(x, target)
        images = [self._as_images(part) for part in (x, target)]
        network = _lpips(self.name.removeprefix("lpips-"), x.device)
        distance: Tensor = network(*images).flatten()
        return distance

    def _as_images(self, x: Tensor) -> Tensor:
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        if self.resize is None:
            return x
        return F.interpolate(x, (self.resize, self.resize), mode="bilinear", align_corners=False)


def squared_error(x: Tensor, target: Tensor) -> Tensor:
    """Mean over the components of (x - target)^2: [B, ...] -> [B]."""
    return (x - target).square().flatten(1).mean(dim=1)


def huber(x: Tensor, target: Tensor) -> Tensor:
    """Pseudo-Huber, sqrt(mean square + c^2) - c: like l2 near zero, like its root elsewhere: [B, ...] -> [B]."""
    return (squared_error(x, target) + HUBER_C**2).sqrt() - HUBER_C


@cache
def _lpips(backbone: str, device: torch.device) -> nn.Module:
    if device.type != "cpu":
        import copy

        return copy.deepcopy(_lpips(backbone, torch.device("cpu"))).to(device)
    import warnings

    import lpips

    path = _find_backbone(backbone)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's deprecations, which lpips brings about
        # Left to itself, lpips would unpickle torchvision's file.
        network: Any = lpips.LPIPS(net=backbone, pnet_rand=True, verbose=False)
    fill_backbone(network.net, path)
    module: nn.Module = network.eval().requires_grad_(False)
    return module


def _find_backbone(backbone: str) -> Path:
    try:
        return find_backbone(backbone)
    except Unavailable as error:
        raise BadInput(f"distance lpips-{backbone}: {error}") from error


def find_backbone(backbone: str) -> Path:
    """The file of a backbone: torchvision's in the folder of weights or in torch hub's, or another of its layers there.

    Raises:
        Unavailable: there is none, and it cannot be downloaded.
    """
    name, ours = BACKBONES[backbone], published.folder()
    places = (ours, Path(torch.hub.get_dir()) / "checkpoints")
    others = sorted(ours.glob(f"{name.partition('-')[0]}*.pth"))
    for path in (*(place / name for place in places), *others):
        if path.is_file():
            return path
    return published.obtain(f"https://download.pytorch.org/models/{name}", ours / name)


def fill_backbone(trunk: nn.Module, path: Path) -> None:
    """Load the convolutions `features.*` in `path`, which may also hold a classifier, into the parts of `trunk`.

    A part has them by torchvision's numbers, as lpips' slices do.

    Raises:
        BadInput: other tensors than those, or anything else than tensors, which is not executed.
    """
    stored = load_archive(path)
    stored = unprefixed(stored) if isinstance(stored, Mapping) and all(isinstance(key, str) for key in stored) else {}
    state: dict[str, Tensor] = {}
    for name, wanted in trunk.state_dict().items():
        theirs = f"features.{name.partition('.')[2]}"  # ours is slice1.0.weight
        tensor = stored.get(theirs)
        if not isinstance(tensor, Tensor) or tensor.shape != wanted.shape or not tensor.is_floating_point():
            raise BadInput(f"{path}: wanted torchvision's {theirs} of {list(wanted.shape)}; it holds none such")
        state[name] = tensor
    trunk.load_state_dict(state)
