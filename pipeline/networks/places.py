"""Where each tensor of a network stands, and which parts its axes join: by it one network takes another's weights."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from pipeline.networks.flow_network import FlowNetwork
from pipeline.networks.layers import Attention, Block, PositionalFeatures
from pipeline.networks.mlp import MlpBlock
from pipeline.networks.unet import UNet


@dataclass(frozen=True)
class Place:
    """A tensor's place in its network.

    `block` says the size of a level's image in place of an index, so that it means the same in U-Nets of any depth;
    there, or in the trunk of an Mlp, it is block `number` of `count`. `layer` is the rest of the tensor's name. `axes`
    gives for each axis of the tensor the sizes of the parts that it joins, as queries, keys and values; the parts of
    the axis `frequencies`, if any, are sines and cosines at as many frequencies, evenly spaced between the same two on
    a logarithmic scale. `head_channels` are those of a head of attention, in the layer of its queries.
    """

    block: str
    number: int
    count: int
    layer: str
    axes: tuple[tuple[int, ...], ...]
    frequencies: int | None = None
    head_channels: int = 0

    def __str__(self) -> str:
        return f"{self.block} {self.number + 1} of {self.count}" if self.count > 1 else self.block


def places(network: FlowNetwork) -> dict[str, Place]:
    """The place of every tensor of `network`, by its name in the state."""
    levels = dict(_levels(network) if isinstance(network, UNet) else _numbered(network))
    frequencies, heads, found = dict(_frequencies(network)), dict(_heads(network)), {}
    for name, axes in _axes(network).items():
        prefix = ".".join(name.split(".")[:2])
        block, number, count = levels.get(prefix, (prefix, 0, 1))
        layer = name.removeprefix(prefix)
        found[name] = Place(block, number, count, layer, tuple(axes), frequencies.get(name), heads.get(name, 0))
    return found


def _frequencies(network: FlowNetwork) -> Iterator[tuple[str, int]]:
    """The tensors with an axis of sines and cosines, and that axis. Fourier features have random frequencies."""
    if not isinstance(network.embed_t.features, PositionalFeatures):
        return
    yield from (("embed_t.layer0.weight", 1), ("embed_s.layer0.weight", 1))
    if _labels_join_features(network):
        yield from (("embed_label.weight", 0), ("embed_label.bias", 0))


def _heads(network: FlowNetwork) -> Iterator[tuple[str, int]]:
    """The tensors that make queries, and the channels of a head there."""
    for path, module in network.named_modules():
        if isinstance(module, Attention):
            channels = module.qkv.in_channels // module.num_heads
            yield from ((f"{path}.qkv.{kind}", channels) for kind in ("weight", "bias"))


def _labels_join_features(network: FlowNetwork) -> bool:
    """Whether the embedding of a label is added to the features of a time, as in the family song."""
    return network.config.num_classes > 0 and network.embed_label.out_features == network.embed_t.layer0.in_features


def _numbered(network: FlowNetwork) -> Iterator[tuple[str, tuple[str, int, int]]]:
    """Of each block of a trunk without levels: its name, the trunk's, its number there, and their count."""
    for path, module in network.named_modules():
        if isinstance(module, nn.ModuleList):
            yield from ((f"{path}.{number}", (path, number, len(module))) for number in range(len(module)))


def _levels(network: UNet) -> Iterator[tuple[str, tuple[str, int, int]]]:
    """Of each block, and of what joins an image beside it: its name, its level's, its number there, and their count."""
    height, width = network.config.shape[1:]
    depth = len(network.config.widths) - 1
    for part, beside, level in (("encoder", "inputs", 0), ("decoder", "outputs", depth)):
        counts: dict[str, int] = {}
        numbered = []
        for index, block in enumerate(_blocks(network, part)):
            direction = block.resample.direction
            level += {"down": 1, "up": -1, "none": 0}[direction]
            kind = "" if direction == "none" else f".{direction}"
            place = f"{part}.{height >> level}x{width >> level}{kind}"
            numbered.append((index, place, counts.get(place, 0)))
            counts[place] = counts.get(place, 0) + 1
            yield f"{beside}.{index}", (f"{beside}.{height >> level}x{width >> level}", 0, 1)
        yield from ((f"{part}.{index}", (place, number, counts[place])) for index, place, number in numbered)


def _blocks(network: UNet, part: str) -> list[Block]:
    return [block for block in network.get_submodule(part).children() if isinstance(block, Block)]


def _axes(network: FlowNetwork) -> dict[str, list[tuple[int, ...]]]:
    """The parts of the axes of every tensor."""
    state = network.state_dict()
    axes: dict[str, list[tuple[int, ...]]] = {name: [(size,) for size in state[name].shape] for name in state}

    def split(layer: str, axis: int, *parts: int) -> None:
        for name in (f"{layer}.weight", f"{layer}.bias"):
            if name in axes and axis < len(axes[name]):
                axes[name][axis] = parts

    for path, module in network.named_modules():
        if isinstance(module, Attention):
            split(f"{path}.qkv", 0, *[module.qkv.in_channels] * 3)
        elif isinstance(module, Block) and module.scales:
            split(f"{path}.affine", 0, *[module.conv1.in_channels] * 2)
        elif isinstance(module, MlpBlock):
            split(f"{path}.affine", 0, *[module.layer0.in_features] * 2)
    half = network.embed_t.layer0.in_features // 2
    for name in ("embed_t", "embed_s"):
        split(f"{name}.layer0", 1, half, half)
    if _labels_join_features(network):
        split("embed_label", 0, half, half)
    if isinstance(network, UNet):
        for index, parts in _joined(network):
            split(f"decoder.{index}.norm0", 0, *parts)
            split(f"decoder.{index}.conv0", 1, *parts)
            split(f"decoder.{index}.skip", 1, *parts)
    return axes


def _joined(network: UNet) -> Iterator[tuple[int, tuple[int, int]]]:
    """The blocks of the decoder that take a skip connection, and the channels that come from before and from there."""
    before = _blocks(network, "middle")[-1].conv1.out_channels
    for index, (block, takes_skip) in enumerate(zip(_blocks(network, "decoder"), network.takes_skip, strict=True)):
        if takes_skip:
            yield index, (before, block.norm0.num_channels - before)
        before = block.conv1.out_channels
