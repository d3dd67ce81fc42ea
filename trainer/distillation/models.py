"""The models of a training, and how they answer the queries of its losses: one call of each network a round."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.flow.solver import Velocity
from pipeline.networks import Network
from trainer.distillation.queries import Query


@dataclass(frozen=True)
class Models:
    """The network in training and, if a recipe needs them, its average, the teacher, and what its terms own."""

    network: Network
    ema: Network | None = None
    teacher: Velocity | None = None
    owned: Mapping[str, nn.Module] = field(default_factory=dict)  # by the title of the term

    def answer(self, queries: Sequence[Query]) -> list[Tensor]:
        """The answers to `queries`, in their order; those to one source come from one call of its network."""
        answers: dict[int, Tensor] = {}
        # The differentiated call comes first: under autocast, torch before 2.10 casts a weight once, and one that is
        # cast without gradients would get none.
        for source in ("live", "stopped", "ema", "held-ema"):
            numbers = [i for i, query in enumerate(queries) if query.source == source and query.tangent is None]
            if numbers:
                network = self.ema if source in ("ema", "held-ema") else self.network
                assert network is not None
                with torch.set_grad_enabled(source in ("live", "held-ema") and torch.is_grad_enabled()):
                    found = call(network, [queries[i] for i in numbers])
                answers |= dict(zip(numbers, found, strict=True))
        for i, query in enumerate(queries):
            if query.tangent is not None:
                with torch.set_grad_enabled(query.source == "live" and torch.is_grad_enabled()):
                    answers[i] = differentiate(self.network, query)
        return [answers[i] for i in range(len(queries))]


def call(network: Network, queries: Sequence[Query]) -> list[Tensor]:
    """The answers of `network` to all `queries`, their rows in one batch."""
    times = [query.s for query in queries if query.s is not None]
    answers = network(
        torch.cat([query.x for query in queries]),
        torch.cat([query.t for query in queries]),
        torch.cat(times) if times else None,
        _labels(queries),
    )
    return list(answers.split([len(query.x) for query in queries]))


def _labels(queries: Sequence[Query]) -> Tensor | None:
    labels = [query.label for query in queries if query.label is not None]
    return torch.cat(labels) if labels else None


def differentiate(mean_velocity: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor], query: Query) -> Tensor:
    """F(x, t, s) and its derivative along the query's tangent, [2, B, C, H, W].

    Both are differentiable in the weights where gradients are recorded.
    """
    assert query.s is not None
    assert query.tangent is not None
    tangent = query.tangent
    moving = (
        torch.zeros_like(query.x) if tangent.x is None else tangent.x,
        torch.full_like(query.t, tangent.t),
        torch.full_like(query.s, tangent.s),
    )
    # The fused attention kernels have no forward-mode derivative.
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own use of what it deprecates
        value_and_change = torch.func.jvp(
            lambda x, t, s: mean_velocity(x, t, s, query.label), (query.x, query.t, query.s), moving
        )
    return torch.stack([value_and_change[0], value_and_change[1]])
