"""Tensors of another project's file, moved one by one into a network of ours; each has one place, and none is left."""

import re
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor

from pipeline import networks
from pipeline.common.errors import BadInput, one_line
from pipeline.networks.layers import Block, Resample
from pipeline.networks.unet import UNet, UNetConfig

Move = Callable[[Tensor], Tensor]


def unchanged(x: Tensor) -> Tensor:
    """The move of a tensor whose layout is the same in theirs and ours."""
    return x


# What DistributedDataParallel and torch.compile put before the names of a network's tensors.
PREFIXES = ("module.", "_orig_mod.")


def unprefixed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` without the `PREFIXES` that all their names have, in whatever order and number."""
    stripped = dict(tensors)
    while prefix := next((p for p in PREFIXES if stripped and all(name.startswith(p) for name in stripped)), ""):
        stripped = {name.removeprefix(prefix): tensor for name, tensor in stripped.items()}
    return stripped


def stored_numel(tensor: Tensor) -> int:
    """The elements that a file holds of `tensor`, which may claim more: a stride of 0 repeats one."""
    return min(tensor.numel(), tensor.untyped_storage().nbytes() // tensor.element_size())


class Conversion:
    """A network of `config` that is being filled from `tensors`, the content of `path`.

    Every method raises `BadInput` that names the file, the tensor, what was wanted and what came.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor], config: UNetConfig) -> None:
        self.path, self.left = path, unprefixed(tensors)
        networks.require_size(path, config, len(tensors), sum(stored_numel(tensor) for tensor in tensors.values()))
        try:
            with torch.device("meta"):
                self.network = networks.build(config)
        except (RuntimeError, TypeError, OverflowError) as error:
            raise BadInput(f"{path}: its network cannot be built: {one_line(error)[:150]}") from error
        self.wanted = self.network.state_dict()
        self.state: dict[str, Tensor] = {}

    def blocks(self, part: str) -> list[str]:
        """The names of our blocks in `part`: "encoder", "middle" or "decoder"."""
        return [f"{part}.{name}" for name, _ in self.network.get_submodule(part).named_children()]

    def block(self, ours: str) -> Block:
        """Our block of that name."""
        block = self.network.get_submodule(ours)
        assert isinstance(block, Block)
        return block

    def resample(self, ours: str) -> Resample:
        """Our resampling layer of that name."""
        layer = self.network.get_submodule(ours)
        assert isinstance(layer, Resample)
        return layer

    def take(self, theirs: str, shape: Iterable[int]) -> Tensor:
        """The tensor called `theirs`, as float32."""
        if theirs not in self.left:
            raise BadInput(f"{self.path}: wanted a tensor {theirs} of {list(shape)}; there is none")
        tensor = self.left.pop(theirs)
        if list(tensor.shape) != list(shape):
            raise BadInput(f"{self.path}: wanted {theirs} of {list(shape)}; it is {list(tensor.shape)}")
        if not tensor.is_floating_point():
            raise BadInput(f"{self.path}: wanted {theirs} of floating-point numbers; it is {tensor.dtype}")
        # A copy: the file may be mapped, and change under a network that is at work.
        return tensor.to(torch.float32, copy=True)

    def layer(self, ours: str, theirs: str, move: Move = unchanged) -> None:
        """Fill our layer `ours`, its weight and its bias where it has one, from theirs of the same shape."""
        for leaf in ("weight", "bias"):
            if f"{ours}.{leaf}" in self.wanted:
                self.put(f"{ours}.{leaf}", move(self.take(f"{theirs}.{leaf}", self.wanted[f"{ours}.{leaf}"].shape)))

    def put(self, ours: str, tensor: Tensor) -> None:
        """Fill our tensor `ours`."""
        assert tensor.shape == self.wanted[ours].shape, ours
        self.state[ours] = tensor.contiguous()

    def constant(self, theirs: str, value: Tensor) -> None:
        """Take a tensor that our network computes itself: it has to be `value`."""
        if not torch.allclose(self.take(theirs, value.shape), value):
            raise BadInput(f"{self.path}: {theirs} has other values than this kind of network computes")

    def finish(self) -> UNet:
        """The network, in evaluation mode, when nothing is left."""
        if self.left:
            names = ", ".join(list(self.left)[:3]) + (", ..." if len(self.left) > 3 else "")
            raise BadInput(f"{self.path}: {len(self.left)} of its tensors have no place in such a network: {names}")
        if missing := [name for name in self.wanted if name not in self.state]:
            raise BadInput(
                f"{self.path}: wanted a network with {missing[0]}, {len(missing)} tensors more than such a file has"
            )
        self.network.load_state_dict(self.state, assign=True)
        return self.network.to(memory_format=torch.channels_last).eval()


def describe(root: object) -> str:
    """The content of a file, for the error that it is not the wanted one."""
    return f"keys {', '.join(map(str, list(root)[:5]))}" if isinstance(root, Mapping) else type(root).__name__


class Placeholder:
    """A stand-in for an object whose class is not loaded; it keeps the state, if that is a dictionary."""

    state: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        if isinstance(state, Mapping):
            self.state = state


_SAFE_GLOBALS = threading.Lock()
# Old optimisers store numpy scalars, which are not needed here.
NUMBERS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype", "_codecs.encode")


def load_archive(path: Path) -> object:
    """Load what `torch.save` wrote to `path`: tensors and plain containers. Anything else is refused, unexecuted.

    Raises:
        BadInput: it holds anything else, or is damaged.
    """
    try:
        # torch's list of safe globals belongs to the whole process.
        with _SAFE_GLOBALS, torch.serialization.safe_globals([(Placeholder, name) for name in NUMBERS]):
            # Before torch 1.6 files were no zip archives; those cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except OSError:
        raise
    except Exception as error:  # torch raises a dozen kinds for damaged and foreign files
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        if forbidden:
            raise BadInput(
                f"{path}: wanted a checkpoint of tensors; it asks for {forbidden[1]}; nothing was executed"
            ) from error
        text = str(error).partition("WeightsUnpickler error: ")[2] or str(error)  # else it begins with advice
        detail = " ".join(text.split())[:150]
        raise BadInput(
            f"{path}: wanted a PyTorch checkpoint; {type(error).__name__}: {detail}; is it whole?"
        ) from error
