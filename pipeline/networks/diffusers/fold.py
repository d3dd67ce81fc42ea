"""A student's second time as a change of its first one: exact on a grid of N steps, for a stock network.

At step n of the grid the student adds b_n = gate * second(s_n) to the embedding of t_n. The embedder's last linear
layer sees h_n there, so that any change of its weights with dW h_n = b_n for all n does the same. The least such change
is B A with A = (H^+)^T and B = the b_n as columns, where H has the rows h_n: an adapter of rank N.
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
def folds(network: DiffusersNetwork, times: Tensor) -> Iterator[Fold]:
    """The changes that make the student exact at the steps between `times` [N + 1], falling."""
    times = times.float().to(next(network.parameters()).device)
    t, s = network.family.clock(times[:-1]), network.family.clock(times[1:])
    names = {id(module): name for name, module in network.model.named_modules()}
    for embedder in network.embedders:
        h, added = embedder.hidden(t).double(), embedder.shift(s).double()
        layer = names[id(last_linear(embedder.first))].replace(f"{names[id(embedder)]}.first", names[id(embedder)])
        yield Fold(layer, torch.linalg.pinv(h, rtol=1e-12).T, added.T)


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
