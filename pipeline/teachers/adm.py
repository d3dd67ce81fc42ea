"""OpenAI's U-Net: ADM (openai/guided-diffusion), and the EDM teacher of openai/consistency_models in the same layout.

Both are flat dictionaries of tensors. In the public ones for ImageNet-64 queries, keys and values lie as (three, head,
dim), guided-diffusion's new order. The training flags of consistency_models name the older one, (head, three, dim), but
its attention never used it. A file does not say which order it has.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from pipeline.common.errors import BadInput
from pipeline.networks import DhariwalUNetConfig
from pipeline.networks.layers import Attention
from pipeline.networks.unet import UNet
from pipeline.teachers.conversion import Conversion, Move, describe, load_archive, unchanged

Order = Literal["new", "legacy"]


def load(path: Path, config: DhariwalUNetConfig, order: Order = "new") -> UNet:
    """The network of `config` in the checkpoint at `path`; `order` is that of its attention rows.

    Output channels for a variance (`learn_sigma`) are dropped.

    Raises:
        BadInput: no such checkpoint, or its tensors are not those of `config`.
    """
    tensors = load_archive(path)
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise BadInput(f"{path}: wanted a dictionary of tensors alone; found {describe(tensors)}")
    return convert(path, config, tensors, order)


def convert(path: Path, config: DhariwalUNetConfig, tensors: Mapping[str, Tensor], order: Order = "new") -> UNet:
    """Our network of `config` from `tensors`, the state_dict of theirs in `path`.

    Raises:
        BadInput: they do not fit.
    """
    # Their norms have 32 groups whatever the width; EDM's version has at least four channels in each.
    into = Conversion(path, tensors, config.model_copy(update={"min_channels_per_group": 1}))
    into.layer("embed_t.layer0", "time_embed.0")
    into.layer("embed_t.layer1", "time_embed.2")
    if config.num_classes:
        width = len(into.wanted["embed_t.layer1.bias"])
        into.put("embed_label.weight", into.take("label_emb.weight", (config.num_classes, width)).T)
    into.layer("conv_in", "input_blocks.0.0")
    for i, ours in enumerate(into.blocks("encoder"), start=1):
        _block(into, ours, f"input_blocks.{i}", 0, order)
    _block(into, "middle.0", "middle_block", 0, order)
    _block(into, "middle.1", "middle_block", 2, order)
    number, index = -1, 0
    for ours, takes_skip in zip(into.blocks("decoder"), into.network.takes_skip, strict=True):
        # Theirs upsamples at the end of a level's last block, ours at the start of the next level.
        number, index = (number + 1, 0) if takes_skip else (number, index)
        index = _block(into, ours, f"output_blocks.{number}", index, order)
    into.layer("norm_out", "out.0")
    _last(into, config.image_channels)
    return into.finish()


def _block(into: Conversion, ours: str, theirs: str, index: int, order: Order) -> int:
    """Fill the block `ours` from the modules of `theirs` that begin at `index`; return the index of the next one."""
    names = {
        "norm0": "in_layers.0",
        "conv0": "in_layers.2",
        "affine": "emb_layers.1",
        "norm1": "out_layers.0",
        "conv1": "out_layers.3",
        "skip": "skip_connection",
    }
    for layer, name in names.items():
        into.layer(f"{ours}.{layer}", f"{theirs}.{index}.{name}")
    attention = into.block(ours).attention
    if not isinstance(attention, Attention):
        return index + 1
    into.layer(f"{ours}.attention.norm", f"{theirs}.{index + 1}.norm")

    def from_legacy(x: Tensor) -> Tensor:
        return x.reshape(attention.num_heads, 3, -1, *x.shape[1:]).transpose(0, 1).flatten(0, 2)

    move = from_legacy if order == "legacy" else unchanged
    _pointwise(into, f"{ours}.attention.qkv", f"{theirs}.{index + 1}.qkv", move)
    _pointwise(into, f"{ours}.attention.proj", f"{theirs}.{index + 1}.proj_out")
    return index + 2


def _pointwise(into: Conversion, ours: str, theirs: str, move: Move = unchanged) -> None:
    """A 1x1 convolution, which guided-diffusion may store as a Conv1d over the flattened pixels."""
    shape = into.wanted[f"{ours}.weight"].shape
    stored = into.left.get(f"{theirs}.weight")
    is_conv1d = stored is not None and stored.ndim == 3
    weight = into.take(f"{theirs}.weight", shape[:3] if is_conv1d else shape)
    into.put(f"{ours}.weight", move(weight.reshape(shape)))
    into.put(f"{ours}.bias", move(into.take(f"{theirs}.bias", shape[:1])))


def _last(into: Conversion, channels: int) -> None:
    shape = into.wanted["conv_out.weight"].shape
    weight = into.left.get("out.2.weight")
    num_outputs = 2 * channels if weight is not None and len(weight) == 2 * channels else channels
    into.put("conv_out.weight", into.take("out.2.weight", (num_outputs, *shape[1:]))[:channels])
    into.put("conv_out.bias", into.take("out.2.bias", (num_outputs,))[:channels])
