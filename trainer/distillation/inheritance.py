"""What a student's network takes of its teacher's: which tensor comes from which, and which of its channels."""

from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from pipeline.common.plural import counted
from pipeline.networks import FlowNetwork
from pipeline.networks.places import Place, places


@dataclass
class Inheritance:
    """How many tensors of a student are its teacher's, whole or cut to size; which are new; whose block is whose."""

    whole: int = 0
    cut: int = 0
    new: list[str] = field(default_factory=list)
    blocks: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        named = ", ".join(self.new[:4]) + (", ..." if len(self.new) > 4 else "")
        parts = [f"{counted(self.whole, 'tensor')} as they are"] if self.whole else []
        parts += [f"{self.cut} cut to its size"] if self.cut else []
        parts += [f"{len(self.new)} new ({named})"] if self.new else []
        lines = [f"\n  {block} <- {source}" for block, source in self.blocks.items()] if self.cut or self.new else []
        return ", ".join(parts) + "".join(lines)


def inherit(network: FlowNetwork, teacher: FlowNetwork) -> Inheritance:
    """Give `network` the weights of `teacher` that stand in the same places, each cut to its size part by part.

    Levels are matched by the size of their images; a level of fewer blocks takes them evenly spread, from the first to
    the last. The embedding of s takes that of t; its gate stays as it is. A tensor without a counterpart, or with more
    channels than it, keeps its own start.
    """
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
        tensor = None if source is None else cut(source, place, origin)
        if tensor is None:
            found.new += [name] if name != "gate_s" else []
            continue
        found.whole, found.cut = found.whole + (tensor is source), found.cut + (tensor is not source)
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


def cut(tensor: Tensor, wanted: Place, given: Place) -> Tensor | None:
    """`tensor` itself if it fits, else the leading channels of each part of each axis; None if some are missing.

    Of frequencies not the leading ones are taken but the nearest.
    """
    if wanted.axes == given.axes:
        return tensor
    if [len(parts) for parts in wanted.axes] != [len(parts) for parts in given.axes]:
        return None
    for axis, (sizes, theirs) in enumerate(zip(wanted.axes, given.axes, strict=True)):
        if any(size > their for size, their in zip(sizes, theirs, strict=True)):
            return None
        choose = _nearest if axis == wanted.frequencies else _leading
        starts = accumulate((0, *theirs))
        chosen = [start + choose(*pair) for start, pair in zip(starts, zip(sizes, theirs, strict=True), strict=False)]
        tensor = tensor.index_select(axis, torch.cat(chosen))
    return tensor


def _leading(size: int, available: int) -> Tensor:
    return torch.arange(size)


def _nearest(size: int, available: int) -> Tensor:
    """Of `available` points evenly spaced from end to end, the nearest to each of `size` such points."""
    return (torch.linspace(0, 1, size)[:, None] - torch.linspace(0, 1, available)).abs().argmin(1)
