"""Where tensors stand: names that mean the same in networks of any depth, and parts that fill every axis."""

import pytest

from pipeline import networks
from pipeline.networks.places import places
from pipeline.networks.unet import UNetConfig
from tests.support.problems import FAMILIES, tiny_config


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_the_parts_of_every_axis_fill_it_and_every_place_is_one_tensors(config: UNetConfig) -> None:
    network = networks.build(config)
    found, state = places(network), network.state_dict()
    assert found.keys() == state.keys()
    for name, place in found.items():
        assert tuple(sum(parts) for parts in place.axes) == state[name].shape, name
    assert len({(place.block, place.number, place.layer) for place in found.values()}) == len(state)


def test_levels_are_named_by_the_size_of_their_images() -> None:
    network = networks.build(tiny_config(resolution=(8, 4), channel_mult=(1, 2), num_blocks=2))
    blocks = {name.rpartition(".conv0")[0]: str(place) for name, place in places(network).items() if "conv0.w" in name}
    assert list(blocks.values()) == [
        *("encoder.8x4 1 of 2", "encoder.8x4 2 of 2", "encoder.4x2.down", "encoder.4x2 1 of 2", "encoder.4x2 2 of 2"),
        *("middle.0", "middle.1", "decoder.4x2 1 of 3", "decoder.4x2 2 of 3", "decoder.4x2 3 of 3"),
        *("decoder.8x4.up", "decoder.8x4 1 of 3", "decoder.8x4 2 of 3", "decoder.8x4 3 of 3"),
    ]
