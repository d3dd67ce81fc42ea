"""Rectified Flow (gnobitab/RectifiedFlow) and SlimFlow (yuanzhi-zhu/SlimFlow): checkpoints in score_sde's layout.

A dictionary of `model`, whose layers are numbered through, and `ema`, whose tensors are a list in the same order. The
EMA weights are what both projects sample with, and what is loaded. SlimFlow's own ImageNet networks are EDM's
DhariwalUNet in such a dictionary.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from pipeline.common.errors import BadInput
from pipeline.networks import DhariwalUNetConfig, SongUNetConfig
from pipeline.networks.layers import Attention
from pipeline.networks.unet import UNet
from pipeline.teachers import edm
from pipeline.teachers.conversion import Conversion, describe, load_archive, unprefixed

SIGMAS = "sigmas"  # noise levels of another kind of model, which every such network carries
FREQUENCIES = "all_modules.0.W"  # of a Fourier embedding, which is not trained


def load(path: Path, config: SongUNetConfig | DhariwalUNetConfig) -> UNet:
    """The EMA network of `config` in the checkpoint at `path`.

    Raises:
        BadInput: no such checkpoint, or its tensors are not those of `config`.
    """
    root = load_archive(path)
    model, ema = (root.get("model"), root.get("ema")) if isinstance(root, Mapping) else (None, None)
    shadow = ema.get("shadow_params") if isinstance(ema, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(shadow, list):
        raise BadInput(f"{path}: wanted a checkpoint with 'model' and 'ema' of shadow_params; found {describe(root)}")
    tensors = _averaged(path, unprefixed(model), shadow)
    if isinstance(config, DhariwalUNetConfig):
        return edm.fill(path, config, {f"model.{name}": tensor for name, tensor in tensors.items()})
    return convert(path, config, tensors)


def _averaged(path: Path, model: Mapping[str, Tensor], shadow: Sequence[object]) -> dict[str, Tensor]:
    """The tensors of `model` with the values of `shadow`, which is in the order of its parameters."""
    names = [name for name in model if not _is_fixed(name)]
    if len(names) != len(shadow):
        raise BadInput(f"{path}: wanted as many EMA tensors as parameters, {len(names)}; there are {len(shadow)}")
    tensors = {name: tensor for name, tensor in model.items() if _is_fixed(name) and name != SIGMAS}
    for name, tensor in zip(names, shadow, strict=True):
        if not isinstance(tensor, Tensor) or tensor.shape != model[name].shape:
            got = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise BadInput(f"{path}: wanted an EMA tensor of {list(model[name].shape)} for {name}; it is {got}")
        tensors[name] = tensor
    return tensors


def _is_fixed(name: str) -> bool:
    """Whether the tensor called `name` is not trained, and so has no average."""
    return name in (SIGMAS, FREQUENCIES) or name.endswith(".resample_filter")


def convert(path: Path, config: SongUNetConfig, tensors: Mapping[str, Tensor]) -> UNet:
    """Our network of `config` from the parameters of theirs, by name, that `path` holds.

    Raises:
        BadInput: they do not fit.
    """
    into = Conversion(path, tensors, config)
    theirs = (f"all_modules.{i}" for i in count())
    if config.time_embedding == "fourier":
        into.put("embed_t.features.freqs", into.take(f"{next(theirs)}.W", into.wanted["embed_t.features.freqs"].shape))
    for ours in ("embed_t.layer0", "embed_t.layer1", "conv_in"):
        into.layer(ours, next(theirs))
    for part in ("encoder", "middle", "decoder"):
        for i, ours in enumerate(into.blocks(part)):
            if part == "decoder":
                _output(into, str(i), theirs)
            _block(into, ours, theirs)
            if part == "encoder":
                _input(into, config, str(i), theirs)
    for ours in ("norm_out", "conv_out"):
        into.layer(ours, next(theirs))
    return into.finish()


def _input(into: Conversion, config: SongUNetConfig, index: str, numbers: Iterator[str]) -> None:
    """Their convolution of the image, where it joins the features after the encoder's block `index`."""
    if index in into.network.inputs:
        into.layer(f"inputs.{index}.conv", f"{next(numbers)}.{'Conv_0' if config.encoder == 'skip' else 'Conv2d_0'}")


def _output(into: Conversion, index: str, numbers: Iterator[str]) -> None:
    """Their image of a level, which stands before the decoder's block `index` that doubles the pixels."""
    if index in into.network.outputs:
        for layer in ("norm", "conv"):
            into.layer(f"outputs.{index}.{layer}", next(numbers))


def _block(into: Conversion, ours: str, numbers: Iterator[str]) -> None:
    theirs = next(numbers)
    names = {"norm0": "GroupNorm_0", "conv0": "Conv_0", "affine": "Dense_0", "norm1": "GroupNorm_1", "conv1": "Conv_1"}
    for layer, name in {**names, "skip": "Conv_2"}.items():
        into.layer(f"{ours}.{layer}", f"{theirs}.{name}")
    if isinstance(into.block(ours).attention, Attention):
        _attention(into, f"{ours}.attention", next(numbers))


def _attention(into: Conversion, ours: str, theirs: str) -> None:
    """Their 1x1 convolutions are matrices [in, out], and queries, keys and values apart."""
    into.layer(f"{ours}.norm", f"{theirs}.GroupNorm_0")
    width = len(into.wanted[f"{ours}.proj.bias"])
    for layer, names in {"qkv": ("NIN_0", "NIN_1", "NIN_2"), "proj": ("NIN_3",)}.items():
        matrices = [into.take(f"{theirs}.{name}.W", (width, width)).T for name in names]
        into.put(f"{ours}.{layer}.weight", torch.cat(matrices)[:, :, None, None])
        into.put(f"{ours}.{layer}.bias", torch.cat([into.take(f"{theirs}.{name}.b", (width,)) for name in names]))
