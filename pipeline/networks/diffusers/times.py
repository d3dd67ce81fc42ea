"""A network's timestep embedder, told its times in fp32, and with a second time where the network is a student."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

# Embedders of other things than the time, in the same classes.
NOT_OF_TIME = ("guidance_embedder", "add_embedding")


class TimeEmbedder(nn.Module):
    """Stands in a timestep embedder's place: first(t), and with a second time first(t) + gate * second(s).

    `second` starts as a copy of `first`, and `gate` at zero: the network starts as it was, bit for bit. The times come
    from `tell`, in the model's own units and in fp32: a network that casts its time to bf16 first sees 126 distinct
    times in [0.5, 1]. `projection`, the sinusoids of a time, is the model's own; None where the embedder has them.
    """

    gate: nn.Parameter
    second: nn.Module

    def __init__(self, first: nn.Module, projection: nn.Module | None) -> None:
        super().__init__()
        self.first = first
        self._projection = (projection,)  # in a tuple: it stays a part of the model alone
        self._told: tuple[Tensor, Tensor | None] | None = None

    def add_second_time(self) -> None:
        """Add the embedding of the student's second time, behind a gate that is zero."""
        self.second = copy.deepcopy(self.first).requires_grad_(True)
        self.gate = nn.Parameter(torch.zeros(last_linear(self.first).out_features))

    @property
    def has_second_time(self) -> bool:
        return "gate" in self._parameters

    def tell(self, t: Tensor, s: Tensor | None) -> None:
        """Set the times of the calls that follow, float32 [B] in the model's units."""
        self._told = t, s

    def forget(self) -> None:
        """Take the times from the model itself again, as in a stock pipeline."""
        self._told = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_told": None}  # which may be a step of a derivative, and cannot be copied

    def forward(self, sample: Tensor, *_: Any) -> Tensor:
        """The embedding [B, channels] of the times that were told; without any, of the model's own `sample` of one."""
        if self._told is None:
            own: Tensor = self.first(sample)
            return own
        t, s = self._told
        embedding = self._embed(self.first, t, sample)
        if s is not None and self.has_second_time:
            embedding = embedding + self.gate.to(embedding.dtype) * self._embed(self.second, s, sample)
        return embedding

    def _embed(self, embedder: nn.Module, time: Tensor, sample: Tensor) -> Tensor:
        (projection,) = self._projection
        embedding: Tensor = embedder(time if projection is None else projection(time).to(sample.dtype))
        return embedding

    def hidden(self, t: Tensor) -> Tensor:
        """What the last linear layer of `first` sees at times t [N], [N, width]."""
        seen: list[Tensor] = []
        hook = last_linear(self.first).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self._embed(self.first, t, next(self.first.parameters()))
        finally:
            hook.remove()
        return seen[0]

    def shift(self, s: Tensor) -> Tensor:
        """What the second time adds to the embedding at times s [N], [N, channels]."""
        return self.gate * self._embed(self.second, s, self.gate)


def last_linear(embedder: nn.Module) -> nn.Linear:
    """The last linear layer of a timestep embedder."""
    layers = [module for module in embedder.modules() if isinstance(module, nn.Linear)]
    return layers[-1]


def wrap_embedders(model: nn.Module) -> list[TimeEmbedder]:
    """Put a `TimeEmbedder` in the place of each timestep embedder of `model`: one, or one a block.

    Raises:
        ValueError: there is none.
    """
    wrapped = [_wrap(parent, name, child) for parent, name, child in list(_find_embedders(model))]
    if not wrapped:
        raise ValueError(f"{type(model).__name__} has no timestep embedder that is known here")
    return wrapped


def _find_embedders(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    from diffusers.models.embeddings import TimestepEmbedding

    for parent in model.modules():
        for name, child in parent.named_children():
            is_one = isinstance(child, TimestepEmbedding) or type(child).__name__ == "TimestepEmbedder"
            if is_one and name not in NOT_OF_TIME:
                yield parent, name, child


def _wrap(parent: nn.Module, name: str, first: nn.Module) -> TimeEmbedder:
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps

    projections = [p for n, p in parent.named_children() if isinstance(p, Timesteps) and n != "add_time_proj"]
    wrapper = TimeEmbedder(first, projections[0] if isinstance(first, TimestepEmbedding) else None)
    setattr(parent, name, wrapper)
    return wrapper


def unwrap_embedders(model: nn.Module) -> None:
    """Put each `first` back in its place: the model is stock again."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, TimeEmbedder):
                setattr(parent, name, child.first)
