"""What a student's network takes of its teacher's: which tensor comes from which, and which of its channels."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pipeline.common.plural import counted
from pipeline.networks import FlowNetwork, Mlp
from pipeline.networks.places import Place, places


@dataclass
class Inheritance:
    """How many tensors of a student are its teacher's, whole, cut or widened; which are new; whose block is whose."""

    whole: int = 0
    cut: int = 0
    widened: int = 0
    new: list[str] = field(default_factory=list)
    blocks: dict[str, str] = field(default_factory=dict)

    def count(self, place: Place, origin: Place) -> None:
        """Add the tensor at `place`, which comes from `origin`."""
        pairs = [pair for axes in zip(place.axes, origin.axes, strict=True) for pair in zip(*axes, strict=True)]
        if place.axes == origin.axes:
            self.whole += 1
        elif any(size > available for size, available in pairs):
            self.widened += 1
        else:
            self.cut += 1

    def __str__(self) -> str:
        named = ", ".join(self.new[:4]) + (", ..." if len(self.new) > 4 else "")
        parts = [f"{counted(self.whole, 'tensor')} as they are"] if self.whole else []
        parts += [f"{self.cut} cut to its size"] if self.cut else []
        parts += [f"{self.widened} widened"] if self.widened else []
        parts += [f"{len(self.new)} new ({named})"] if self.new else []
        lines = [f"\n  {block} <- {source}" for block, source in self.blocks.items()] if self.cut or self.new else []
        return ", ".join(parts) + "".join(lines)


def inherit(network: FlowNetwork, teacher: FlowNetwork) -> Inheritance:
    """Give `network` the weights of `teacher` that stand in the same places, each fitted to its size (`fit`).

    Levels are matched by the size of their images; a level of fewer blocks takes them evenly spread, from the first to
    the last. The embedding of s takes that of t; its gate stays as it is. A tensor without a counterpart keeps its own
    start.
    """
    if isinstance(network, Mlp) and isinstance(teacher, Mlp) and network.config.width > teacher.config.width:
        teacher = teacher.padded(network.config.width)
        nn.init.zeros_(network.layer_in.weight)
        nn.init.zeros_(network.layer_in.bias)
    found, state, given = Inheritance(), network.state_dict(), teacher.state_dict()
    counts: dict[str, int] = {}
    theirs: dict[tuple[str, int | None, str], tuple[Tensor, Place]] = {}
    for name, place in places(teacher).items():
        counts[place.block] = place.count
        theirs[place.block, place.number, place.layer] = given[name], place
    for name, place in places(network).items():
        block = place.block.replace("embed_s.", "embed_t.")
        number = counterpart(place.number, place.count, counts.get(block, 0))
        source, origin = theirs.get((block, number, place.layer), (None, place))
        tensor = None if source is None else fit(state[name], source, place, origin)
        if tensor is None:
            found.new += [name] if name != "gate_s" else []
            continue
        found.count(place, origin)
        if place.layer:
            found.blocks[str(place)] = str(origin)
        state[name] = tensor
    network.load_state_dict(state)
    return found


def counterpart(number: int, count: int, available: int) -> int | None:
    """Which of a teacher's `available` blocks of a level the block `number` of `count` takes; None: none of them.

    The first takes the first and the last the last: in a decoder those join the level below, and the level's input.
    """
    if count <= available:
        return round(number * (available - 1) / max(count - 1, 1))
    if number == count - 1 and available > 1:
        return available - 1
    return number if number < max(available - 1, min(available, 1)) else None


def fit(own: Tensor, tensor: Tensor, wanted: Place, given: Place) -> Tensor | None:
    """`tensor` in the shape of `own`, part by part of each axis; None if their axes do not join as many parts.

    Of a larger part the leading channels are taken, of frequencies the nearest. A smaller part comes first in its
    place: its outputs read nothing of the new inputs, and so do what they did, while the new outputs keep their `own`
    random start (Net2Net, Chen et al. 2016, arXiv 1511.05641, with zeros in place of copied channels).
    """
    if wanted.axes == given.axes:
        return tensor
    if [len(parts) for parts in wanted.axes] != [len(parts) for parts in given.axes]:
        return None
    pairs = [_channels(axis, wanted, given) for axis in range(tensor.ndim)]
    ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    fitted = own.clone()
    fitted[ours[0]] = 0
    fitted[torch.meshgrid(*ours, indexing="ij")] = tensor[torch.meshgrid(*theirs, indexing="ij")]
    if wanted.head_channels > given.head_channels:
        # A head's products sum over its new channels too, and are divided by the root of their number.
        queries = fitted[: wanted.axes[0][0]]
        queries[given.axes[0][0] :] = 0
        queries *= math.sqrt(wanted.head_channels / given.head_channels)
    return fitted


def _channels(axis: int, wanted: Place, given: Place) -> tuple[Tensor, Tensor]:
    """The channels along `axis` that are the teacher's, and which of its channels they are."""
    choose = _nearest if axis == wanted.frequencies else _leading
    ours, theirs, start, origin = [], [], 0, 0
    for size, available in zip(wanted.axes[axis], given.axes[axis], strict=True):
        chosen = choose(size, available)
        ours.append(start + torch.arange(len(chosen)))
        theirs.append(origin + chosen)
        start, origin = start + size, origin + available
    return torch.cat(ours), torch.cat(theirs)


def _leading(size: int, available: int) -> Tensor:
    return torch.arange(min(size, available))


def _nearest(size: int, available: int) -> Tensor:
    """Of `available` points evenly spaced from end to end, the nearest to each of `size` such points."""
    return (torch.linspace(0, 1, size)[:, None] - torch.linspace(0, 1, available)).abs().argmin(1)
