"""The network of a first training fits the data."""

import pytest

from pipeline import networks
from pipeline.common.safe_yaml import parse_yaml
from pipeline.networks import SongUNetConfig, network_for


def built(shape: tuple[int, ...]) -> networks.FlowNetwork:
    return networks.build(networks.parse_own(parse_yaml(network_for(shape).encode())).completed(shape, 0))


@pytest.mark.parametrize("shape", [(2,), (3, 8, 9), (1, 5, 5), (1, 4, 4), (7, 12), (2, 8, 8, 8)], ids=str)
def test_all_that_is_no_image_to_halve_gets_an_mlp(shape: tuple[int, ...]) -> None:
    assert network_for(shape) == "{family: mlp}"
    assert built(shape).config.shape == shape


@pytest.mark.parametrize(
    ("shape", "levels", "most"),
    [((1, 8, 8), 2, 0.2), ((1, 12, 12), 2, 0.2), ((1, 28, 28), 3, 1.3), ((3, 32, 32), 4, 2), ((3, 16, 24), 3, 1.3)],
    ids=str,
)
def test_a_small_image_gets_a_small_u_net(shape: tuple[int, ...], levels: int, most: float) -> None:
    network = built(shape)
    assert isinstance(network.config, SongUNetConfig)
    assert len(network.config.channel_mult) == levels
    assert sum(tensor.numel() for tensor in network.parameters()) < most * 1e6
