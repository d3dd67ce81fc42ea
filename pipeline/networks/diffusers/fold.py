"""A student's second time as a change of its first one: exact on a grid of N steps, for a stock network.

At step n of the grid the student adds gate * second(s_n) to the embedding of t_n, and the stock pipeline tells the
network tau_n, which may not be t_n's. The embedder's last linear layer W sees h_n there, and h(t_n) in the student, so
that any change of its weights with dW h_n = b_n = W (h(t_n) - h_n) + gate * second(s_n) for all n does the same. The
least such change is B A with A = (H^+)^T and B = the b_n as columns, where H has the rows h_n: an adapter of rank N.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.networks.diffusers.adapter import merge_adapter
from pipeline.networks.diffusers.network import DiffusersNetwork
from pipeline.networks.diffusers.times import last_linear, unwrap_embedders


class Fold(NamedTuple):
    """The change of one layer's weights, `b` [out, N] times `a` [N, in], float64; `layer` is its name in the model."""

    layer: str
    a: Tensor
    b: Tensor


@torch.no_grad()
def folds(network: DiffusersNetwork, times: Tensor, told: Tensor | None = None) -> Iterator[Fold]:
    """The changes that make the student exact at the steps between `times` [N + 1], falling.

    `told` [N] reaches the embedders of the stock network at these steps, by default what reaches the student's.
    """
    times = times.float().to(next(network.parameters()).device)
    t, s = network.family.clock(times[:-1]), network.family.clock(times[1:])
    told = t if told is None else told.to(t)
    names = {id(module): name for name, module in network.model.named_modules()}
    for embedder in network.embedders:
        weight = last_linear(embedder.first).weight.double()
        h, added = embedder.hidden(told).double(), embedder.shift(s).double()
        added += (embedder.hidden(t).double() - h) @ weight.T
        layer = names[id(last_linear(embedder.first))].replace(f"{names[id(embedder)]}.first", names[id(embedder)])
        yield Fold(layer, *balanced(torch.linalg.pinv(h, rtol=1e-12).T, added.T))


def balanced(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of the same product `b` `a` that are no larger than it: those of times close together would cancel."""
    rows, columns = torch.linalg.qr(a.T), torch.linalg.qr(b)
    left, sizes, right = torch.linalg.svd(columns.R @ rows.R.T)
    return sizes.sqrt()[:, None] * right @ rows.Q.T, columns.Q @ (left * sizes.sqrt())


@torch.no_grad()
def into_stock(network: DiffusersNetwork, found: list[Fold]) -> nn.Module:
    """The stock model of `network` with its adapter and `found` in its weights; `network` is used up."""
    if network.config.adapter is not None:
        merge_adapter(network.model)
    unwrap_embedders(network.model)
    for fold in found:
        weight = network.model.get_submodule(fold.layer).weight
        assert isinstance(weight, Tensor)
        weight.copy_(weight.double() + fold.b @ fold.a)
    return network.model
