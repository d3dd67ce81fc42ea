"""Feature spaces in which sets of images are compared. Add one as a line in `FEATURES`, or by a factory of your own.

Inception's resizers and networks are clean-fid's (Parmar et al. 2022, arXiv 2104.11222), so figures agree with its own.
A distance over features other than Inception's is not an FID, and is never called one.
"""

import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from eval.features import digit_classifier, weights
from eval.features.weights import Unavailable
from pipeline.common import plugins
from pipeline.common.errors import BadInput, WorkFailed, one_line
from pipeline.common.image_grid import is_drawable
from pipeline.common.module_files import advise
from pipeline.common.suggestions import suggest
from pipeline.storage.hashing import file_sha256
from trainer.data.image_set import to_float
from trainer.distillation.distance import fill_backbone, find_backbone

BATCH_SIZE = 64  # images of a pass through the network: 69 MB at 299x299 in float32
BATCHES_AHEAD = 4  # of these, resized ahead of the network
DIGITS_BATCH_SIZE = 1024
IMAGENET_PIXELS = 224  # of the images that DINOv2 and SqueezeNet take
IMAGENET_RESIZER = f"PIL, bicubic, antialiased, to bytes of {IMAGENET_PIXELS}x{IMAGENET_PIXELS}"
MAX_VALUES = 4096  # of an array, in the space of values: a covariance of 134 MB
# Per channel of ImageNet's images in [0, 1].
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

RGB = tuple[float, float, float]
Features = NDArray[np.float32]  # [N, D]
Resize = Callable[[NDArray[np.uint8]], NDArray[Any]]  # [H, W, 3] -> [S, S, 3] in [0, 255], the network's size
Network = Callable[[Tensor], tuple[Tensor, Tensor | None]]  # [B, 3, S, S] -> features [B, D], probabilities [B, K]


@dataclass(frozen=True)
class Extracted:
    """Features float32 [N, D] of N images, and probabilities float32 [N, K] if an Inception Score needs them."""

    features: Features
    probabilities: Features | None = None


@dataclass(frozen=True)
class FeatureSpace:
    """Features of images uint8 [N, *shape], as a network has them; or of the `values` float32 [N, *shape] of any array.

    Without a `shape`, images may have any size and 1 or 3 channels; grey images are repeated to three channels.
    """

    name: str  # in metrics' keys, and for --features
    title: str
    resizer: str  # describes the step from the images' size to the network's, for the report
    sha256: str  # of the network's weights
    extract: Callable[[NDArray[Any]], Extracted]
    shape: tuple[int, ...] | None = None
    of: Literal["images", "values"] = "images"

    def begin(self, images: NDArray[Any]) -> Callable[[], Extracted]:
        """Begin to extract features where threads can do so alone; the function that is returned gives them."""
        return self.extract.begin(images) if isinstance(self.extract, Extractor) else partial(self.extract, images)

    def check_shape(self, shape: tuple[int, ...], what: str) -> None:
        """Raises `BadInput` unless samples of `shape` have such features; `what` names them in the error."""
        if self.of == "values":
            _check_values(shape, what)
            return
        if self.shape is not None and shape != self.shape:
            raise BadInput(f"{what}: wanted images of {list(self.shape)} for {self.title}; they are {list(shape)}")
        if not is_drawable(shape):
            raise BadInput(f"{what}: wanted images of 1 or 3 channels for {self.title}; they are {list(shape)}")


def load_space(name: str, device: torch.device) -> FeatureSpace:
    """The space called `name` in `FEATURES`, of a digit classifier's file, or that "module:factory" returns.

    Raises:
        BadInput: the name is unknown, the file is no classifier's, or the factory fails or returns something else.
        Unavailable: the network's weights or package are missing and cannot be downloaded.
    """
    if name in FEATURES:
        return FEATURES[name](device)
    if name.endswith(".safetensors"):
        return classifier(Path(name), device)
    if ":" in name:
        return _from_factory(name, device)
    if advice := advise(name):
        raise BadInput(f"features {name}: wanted module:factory{advice}")
    raise BadInput(
        f"no features {name!r}: wanted one of {', '.join(FEATURES)}, a digit classifier's .safetensors file, or "
        f"module:factory{suggest(name, FEATURES)}"
    )


def digits(device: torch.device) -> FeatureSpace:
    """The 64 hidden units of the embedded digit classifier."""
    return replace(
        classifier(digit_classifier.WEIGHTS, device),
        name="digits",
        title=f"the embedded digit classifier, {digit_classifier.NUM_FEATURES} features",
    )


def classifier(path: Path, device: torch.device) -> FeatureSpace:
    """The 64 hidden units of a digit classifier that `eval.features.digit_classifier` trained."""
    network = digit_classifier.load(path).to(device)

    def extract(images: NDArray[np.uint8]) -> Extracted:
        batches = [images[start : start + DIGITS_BATCH_SIZE] for start in range(0, len(images), DIGITS_BATCH_SIZE)]
        with torch.no_grad():
            features = [network.features(torch.from_numpy(to_float(batch)).to(device)) for batch in batches]
        return Extracted(torch.cat(features).cpu().numpy())

    return FeatureSpace(
        name="classifier",
        title=f"a classifier of digits of {network.size}x{network.size}, {digit_classifier.NUM_FEATURES} features",
        resizer="none",
        sha256=file_sha256(path),
        extract=extract,
        shape=(1, network.size, network.size),
    )


def values(device: torch.device) -> FeatureSpace:
    """The values of arrays of any shape, as they are: points, frames of sound, robot actions, small latents."""
    return FeatureSpace(
        name="values",
        title="the values themselves",
        resizer="none",
        sha256="none",
        extract=lambda arrays: Extracted(np.asarray(arrays, np.float32).reshape(len(arrays), -1)),
        of="values",
    )


def _check_values(shape: tuple[int, ...], what: str) -> None:
    if math.prod(shape) > MAX_VALUES:
        raise BadInput(
            f"{what}: wanted at most {MAX_VALUES:,} values in each for features values; samples of {list(shape)} have "
            f"{math.prod(shape):,}: name features of your own with --features module:factory"
        )


def inception(device: torch.device) -> FeatureSpace:
    """The space of clean-fid's FID and KID."""
    network, sha256 = _torchscript(device, resize_inside=False)
    return FeatureSpace(
        name="inception",
        title="Inception-v3 of 2015, 2048 features",
        resizer="PIL, bicubic, antialiased, not quantised, to 299x299 (clean-fid, mode clean)",
        sha256=sha256,
        extract=Extractor(resizer("clean"), lambda x: (network(x), None), device),
    )


def inception_tf(device: torch.device) -> FeatureSpace:
    """The space of the original FID, as StyleGAN, EDM and ADM compute it, and of the Inception Score.

    The softmax leaves out the last layer's bias, as do the Inception Score's own code and StyleGAN's.
    """
    network, sha256 = _torchscript(device, resize_inside=True)

    def extract(x: Tensor) -> tuple[Tensor, Tensor]:
        features = network(x)
        return features, F.linear(features, network.base.output.weight).softmax(dim=1)

    return FeatureSpace(
        name="inception-tf",
        title="Inception-v3 of 2015, 2048 features",
        resizer="TensorFlow's bilinear, not antialiased, to 299x299 (clean-fid, mode legacy_tensorflow; StyleGAN, EDM)",
        sha256=sha256,
        extract=Extractor(resizer("legacy_tensorflow"), extract, device),
    )


def inception_torch(device: torch.device) -> FeatureSpace:
    """The space of pytorch-fid: Inception's weights in torchvision's modules."""
    path = weights.require("inception-torch")
    network = _pytorch_inception(torch.load(path, map_location="cpu", weights_only=True)).to(device)
    return FeatureSpace(
        name="inception-torch",
        title="Inception-v3 of 2015 in torchvision's modules, 2048 features",
        resizer="PyTorch's bilinear, not antialiased, to 299x299 (clean-fid, mode legacy_pytorch; pytorch-fid)",
        sha256=file_sha256(path),
        extract=Extractor(resizer("legacy_pytorch"), lambda x: (network(x / 255)[0].flatten(1), None), device),
    )


def dinov2(device: torch.device) -> FeatureSpace:
    """The class token of DINOv2 ViT-L/14, as in Stein et al. 2023 (arXiv 2306.04675) and EDM2 (arXiv 2312.02696).

    PIL resizes images to bytes, as in the code of Stein et al. and in EDM2's slow mode.
    """
    path = weights.require("dinov2")
    network = _vision_transformer(path).to(device)

    def extract(x: Tensor) -> tuple[Tensor, None]:
        return network(pixel_values=standardised(x)).pooler_output, None

    return FeatureSpace(
        name="dinov2",
        title=f"DINOv2 ViT-L/14, {network.config.hidden_size} features",
        resizer=IMAGENET_RESIZER,
        sha256=file_sha256(path),
        extract=Extractor(_to_imagenet, extract, device),
    )


def squeezenet(device: torch.device) -> FeatureSpace:
    """The last features of torchvision's SqueezeNet 1.1 (Iandola et al. 2016, arXiv 1602.07360), averaged."""
    path = find_backbone("squeeze")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's deprecations
        from torchvision.models import squeezenet1_1

        network = squeezenet1_1(weights=None).features
    fill_backbone(nn.ModuleDict({"features": network}), path)
    network.to(device).eval().requires_grad_(False)
    return FeatureSpace(
        name="squeezenet",
        title="SqueezeNet 1.1, 512 features",
        resizer=IMAGENET_RESIZER,
        sha256=file_sha256(path),
        extract=Extractor(_to_imagenet, lambda x: (network(standardised(x)).mean((2, 3)), None), device),
    )


FEATURES: dict[str, Callable[[torch.device], FeatureSpace]] = {
    "digits": digits,
    "values": values,
    "inception": inception,
    "inception-tf": inception_tf,
    "inception-torch": inception_torch,
    "dinov2": dinov2,
    "squeezenet": squeezenet,
}


@dataclass(frozen=True)
class Extractor:
    """Features of images in two parts: a CPU's threads resize them, then `device` evaluates `network`."""

    resize: Resize
    network: Network
    device: torch.device

    def __call__(self, images: NDArray[np.uint8]) -> Extracted:
        return self.begin(images)()

    def begin(self, images: NDArray[np.uint8]) -> Callable[[], Extracted]:
        """Begin to resize images uint8 [N, 1 or 3, H, W]; the function that is returned gives their features."""
        batches = [images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE)]
        begun = deque(self._resize(batch) for batch in batches[:BATCHES_AHEAD])
        return partial(self._finish, begun, deque(batches[BATCHES_AHEAD:]))

    def _resize(self, images: NDArray[np.uint8]) -> Iterator[NDArray[Any]]:
        return _threads().map(self.resize, _in_colour(images))

    @torch.no_grad()
    def _finish(self, begun: deque[Iterator[NDArray[Any]]], waiting: deque[NDArray[np.uint8]]) -> Extracted:
        """The features of the batches in `begun` and then `waiting`, which are resized ahead of the network."""
        features, probabilities = [], []
        while begun:
            batch = _stack(begun.popleft())
            if waiting:
                begun.append(self._resize(waiting.popleft()))
            batch_features, batch_probabilities = self.network(batch.to(self.device))
            features.append(batch_features.float().cpu())
            if batch_probabilities is not None:
                probabilities.append(batch_probabilities.float().cpu())
        return Extracted(torch.cat(features).numpy(), torch.cat(probabilities).numpy() if probabilities else None)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count())


def _in_colour(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[B, 1 or 3, H, W] -> [B, H, W, 3]."""
    colour = np.broadcast_to(images, (len(images), 3, *images.shape[2:]))
    return np.ascontiguousarray(colour.transpose(0, 2, 3, 1))


def _stack(resized: Iterator[NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.stack(list(resized))).permute(0, 3, 1, 2).float().contiguous()


def resizer(mode: str) -> Resize:
    """clean-fid's resizer for `mode`: clean, legacy_tensorflow or legacy_pytorch."""
    with warnings.catch_warnings():  # clean-fid silences all warnings
        from cleanfid.resize import build_resizer

        resize: Resize = build_resizer(mode)
    return resize


def _to_imagenet(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    size = (IMAGENET_PIXELS, IMAGENET_PIXELS)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def standardised(x: Tensor, mean: RGB = IMAGENET_MEAN, std: RGB = IMAGENET_STD) -> Tensor:
    """[B, 3, S, S] in [0, 255] as networks take it that were trained on images of this `mean` and `std` in [0, 1]."""
    means, stds = (torch.tensor(values, device=x.device)[:, None, None] for values in (mean, std))
    return (x / 255 - means) / stds


def _torchscript(device: torch.device, resize_inside: bool) -> tuple[Any, str]:
    """clean-fid's network from the checked TorchScript file, and the file's sha256."""
    path = weights.require("inception")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript
        from cleanfid.inception_torchscript import InceptionV3W

        network = InceptionV3W(str(path.parent), download=False, resize_inside=resize_inside)
    return network.to(device).eval().requires_grad_(False), file_sha256(path)


def _pytorch_inception(state: dict[str, Tensor]) -> nn.Module:
    from cleanfid import inception_pytorch

    with warnings.catch_warnings(), _patched(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: state):
        warnings.simplefilter("ignore")  # torchvision's deprecations
        network: nn.Module = inception_pytorch.InceptionV3(output_blocks=[3], resize_input=False)
    return network.eval()


@contextmanager
def _patched(module: Any, name: str, value: object) -> Iterator[None]:
    """Set `name` in `module` to `value` for a while, because clean-fid would download a file and unpickle it."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _vision_transformer(path: Path) -> Any:
    """transformers' Dinov2Model with the weights at `path`."""
    try:
        transformers = import_module("transformers")
    except ImportError as error:
        raise Unavailable("features dinov2: wanted the package transformers; pip install transformers") from error
    try:
        config = transformers.Dinov2Config.from_json_file(weights.require("dinov2-config"))
        network = transformers.Dinov2Model.from_pretrained(
            path.parent, config=config, use_safetensors=True, local_files_only=True
        )
    except (BadInput, WorkFailed):
        raise
    except Exception as error:  # errors of transformers, safetensors and json share no base class
        raise BadInput(f"{path}: wanted the weights of {weights.DINOV2}; {one_line(error)}") from error
    network.embeddings.position_embeddings = nn.Parameter(_positions(network.embeddings))
    return network.eval().requires_grad_(False)


def _positions(embeddings: Any) -> Tensor:
    """The position embeddings [1, 1 + P, D] at 224x224, interpolated as in DINOv2's own code.

    That code scales the grid by an extra tenth of a patch, which transformers' does not; published figures include it.
    """
    trained: Tensor = embeddings.position_embeddings.detach()
    old, new = round((trained.shape[1] - 1) ** 0.5), IMAGENET_PIXELS // embeddings.patch_size
    if old == new:
        return trained
    grid = trained[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(new + 0.1) / old, mode="bicubic")
    return torch.cat([trained[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _from_factory(source: str, device: torch.device) -> FeatureSpace:
    factory = plugins.import_function(source, "features")
    space = plugins.call_factory(factory, device, FeatureSpace, source, "features")
    if space.name in FEATURES:
        raise BadInput(f"features {source}: wanted a name of its own; {space.name!r} is taken")
    return replace(space, extract=_blamed(source, space.extract))


def _blamed(source: str, extract: Callable[[NDArray[Any]], Extracted]) -> Callable[[NDArray[Any]], Extracted]:
    """`extract` of the user's own, whose errors name it.

    It may write into what it is given, and reuse what it returns.
    """

    def checked(images: NDArray[Any]) -> Extracted:
        try:
            found = _copy(extract(images.copy()))
            shape = found.features.shape
        except (BadInput, WorkFailed):
            raise
        except Exception as error:
            raise WorkFailed(f"features {source}: {type(error).__name__}: {one_line(error)}") from error
        if len(shape) != 2 or shape[0] != len(images):
            raise WorkFailed(f"features {source}: wanted features [{len(images)}, D]; they are {list(shape)}")
        if not np.isfinite(found.features).all():
            raise WorkFailed(f"features {source}: wanted finite features; some are infinite or not a number")
        return found

    return checked


def _copy(found: Extracted) -> Extracted:
    probabilities = None if found.probabilities is None else np.array(found.probabilities)
    return Extracted(np.array(found.features), probabilities)
