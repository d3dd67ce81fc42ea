from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from pipeline import networks
from pipeline.common.errors import BadInput
from pipeline.networks import DhariwalUNetConfig, FlowNetworkConfig, MlpConfig
from pipeline.networks.layers import Resample
from pipeline.networks.song import SongUNetConfig
from pipeline.networks.unet import UNetConfig
from tests.support.problems import FAMILIES, shaken, tiny_config, tiny_network, with_second_time

X = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.2, 0.5, 0.9])


def test_a_new_network_is_nearly_zero_and_keeps_the_shape() -> None:
    torch.manual_seed(0)
    out = networks.build(tiny_config())(X, T)
    assert out.shape == X.shape
    assert out.abs().max() < 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"channel_mult": (1,), "attention_resolutions": ()},
        {"channel_mult": (1, 1, 2), "attention_resolutions": (4, 1)},
        {"num_blocks": 2, "image_channels": 3},
    ],
)
def test_any_number_of_levels_blocks_and_channels(changes: dict[str, Any]) -> None:
    network = tiny_network(**changes)
    x = torch.randn(2, *network.config.shape)
    assert network(x, torch.tensor([0.1, 0.7])).shape == x.shape


def test_images_need_not_be_square() -> None:
    wide = tiny_network(resolution=[4, 8], attention_resolutions=[2])
    assert wide.config.attends == [False, True]
    x = torch.randn(2, 1, 4, 8)
    assert wide(x, torch.rand(2)).shape == x.shape
    assert tiny_config(resolution=[4, 4]) == tiny_config()
    assert tiny_config().model_dump()["resolution"] == 4


@pytest.mark.parametrize("resolution", [0, [], [4, 4, 4], [4, 0], "large", 4.5, None])
def test_what_is_no_resolution_is_said_once(resolution: object) -> None:
    with pytest.raises(ValidationError, match="1 validation error") as caught:
        tiny_config(resolution=resolution)
    assert "wanted a positive whole number, or two" in str(caught.value)


def test_a_network_without_a_shape_is_built_only_once_the_data_gave_it() -> None:
    partial = SongUNetConfig(channel_mult=(1, 2), label_dropout=0.1)
    assert not partial.model_dump().keys() & {"resolution", "image_channels", "num_classes"}
    with pytest.raises(BadInput, match="wanted its resolution"):
        networks.build(partial)
    assert partial.completed((3, 4, 8), 5).shape == (3, 4, 8)
    assert partial.completed((3, 4, 8), 5).num_classes == 5
    assert MlpConfig(num_blocks=1).completed((7,), 5).shape == (7,)
    with pytest.raises(BadInput, match="wanted its shape"):
        networks.build(MlpConfig())
    with pytest.raises(ValueError, match="a U-Net is for images"):
        partial.completed((7,), 0)


def test_what_a_wider_student_keeps_stands_in_a_configuration_only_where_it_is_not_the_default(tmp_path: Path) -> None:
    assert not tiny_config().model_dump().keys() & {"time_channels", "max_groups"}
    network = tiny_network(channels=12, time_channels=8, max_groups=2)
    networks.save(tmp_path / "wide.safetensors", network)
    config = networks.load(tmp_path / "wide.safetensors").config
    assert isinstance(config, UNetConfig)
    assert (config.num_time_features, config.max_groups) == (8, 2)


def test_a_second_time_behind_a_closed_gate_changes_nothing() -> None:
    network = tiny_network(second_time=True)
    torch.testing.assert_close(network(X, T, 0 * T), network(X, T, T))
    network.gate_s.add_(1)
    assert (network(X, T, 0 * T) - network(X, T, T)).abs().max() > 1e-3


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    network = tiny_network()
    torch.testing.assert_close(network(X, T)[1:2], network(X[1:2], T[1:2]))


def test_labels_matter_where_there_are_classes_and_minus_one_is_none() -> None:
    network = tiny_network(num_classes=4)
    zero, one = torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.long)
    assert (network(X, T, label=zero) - network(X, T, label=one)).abs().max() > 1e-4
    torch.testing.assert_close(network(X, T, label=-one), network(X, T))


def test_a_saved_network_comes_back_whole_from_its_file_alone(tmp_path: Path) -> None:
    network = tiny_network(second_time=True, num_classes=3)
    networks.save(tmp_path / "n.safetensors", network)
    found = networks.load(tmp_path / "n.safetensors")
    assert found.config == network.config
    torch.testing.assert_close(found(X, T, T / 2), network(X, T, T / 2))


@pytest.mark.parametrize(
    "changes", [{"resolution": 6, "channel_mult": (1, 1, 1)}, {"channels": 9}, {"channels": 0}, {"channel_mult": ()}]
)
def test_shapes_that_no_network_has_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        tiny_config(**changes)


def test_channels_need_not_be_a_multiple_of_32() -> None:
    assert tiny_network(channels=36)(X, T).shape == X.shape


def inputs(config: FlowNetworkConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    found = {
        "x": torch.randn(3, *config.shape, generator=generator),
        "t": torch.tensor([0.2, 0.5, 0.9]),
        "s": torch.tensor([0.1, 0.5, 0.0]),
        "label": torch.tensor([0, 2, -1]),
    }
    augment_dim = config.augment_dim if isinstance(config, UNetConfig) else 0
    return found | ({"augment": torch.randn(3, augment_dim, generator=generator)} if augment_dim else {})


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_everything_that_a_network_is_told_shows_in_its_output(config: FlowNetworkConfig) -> None:
    network, told = shaken(with_second_time(config)), inputs(config)
    torch.nn.init.normal_(network.gate_s)
    out = network(**told)
    other = {"t": told["t"] / 2, "s": told["s"] / 2, "augment": None} | (
        {"label": torch.tensor([1, 1, 1])} if config.num_classes else {}
    )
    for name, value in other.items():
        if name in told:
            assert (network(**{**told, name: value}) - out).abs().max() > 1e-4, name


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_a_second_time_of_any_family_begins_behind_a_closed_gate(config: FlowNetworkConfig) -> None:
    network, told = shaken(with_second_time(config)), inputs(config)
    torch.testing.assert_close(network(**told), network(**{**told, "s": told["t"]}))


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_a_network_compiles_into_one_graph_and_means_the_same(config: FlowNetworkConfig) -> None:
    network, told = shaken(with_second_time(config)), inputs(config)
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**told), network(**told))


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_a_network_of_any_family_comes_back_from_its_file(config: FlowNetworkConfig, tmp_path: Path) -> None:
    network, told = shaken(config), inputs(config)
    networks.save(tmp_path / "n.safetensors", network)
    found = networks.load(tmp_path / "n.safetensors")
    assert found.config == config
    torch.testing.assert_close(found(**told), network(**told))


@pytest.mark.parametrize("convention", ["flow", "rectified-flow", "edm", "adm"])
def test_a_network_answers_in_its_convention(convention: str) -> None:
    network = tiny_network(convention=convention)
    told: list[torch.Tensor] = []
    network.embed_t.register_forward_pre_hook(lambda _, inputs: told.append(inputs[0]))
    velocity = network(X, T)
    how = network.config.make_convention()
    torch.testing.assert_close(told[0], 10 * how.noise_label(T))
    embedding = network.embedding(T, None, None, None)
    expected = how.velocity(lambda x: network.trunk(x, embedding), X, T[:, None, None, None])
    torch.testing.assert_close(velocity, expected)


def test_filters_keep_an_even_image_even_but_for_its_edge() -> None:
    image = torch.full((1, 2, 8, 8), 3.0)
    for taps in ((1, 1), (1, 3, 3, 1)):
        for direction in ("down", "up"):
            out = Resample(taps, direction)(image)
            assert out.shape[-1] == (4 if direction == "down" else 16)
            torch.testing.assert_close(out[..., 1:-1, 1:-1], torch.full_like(out[..., 1:-1, 1:-1], 3.0))


def test_the_box_filter_averages_and_repeats() -> None:
    image = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    down, up = Resample((1, 1), "down"), Resample((1, 1), "up")
    torch.testing.assert_close(down(image), down.down(image, padding=0))
    torch.testing.assert_close(up(image), up.up(image))
    torch.testing.assert_close(down(up(image)), image)


@pytest.mark.parametrize("taps", [(), (1,), (1, 2, 1)])
def test_a_filter_has_an_even_number_of_taps(taps: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError):
        tiny_config(resample_filter=taps)


def test_heads_divide_the_channels_that_attend() -> None:
    with pytest.raises(ValidationError, match="96 channels make no heads of 64"):
        DhariwalUNetConfig(resolution=8, image_channels=1, channels=96, channel_mult=(1,), attention_resolutions=())


def test_a_label_can_only_be_dropped_where_there_is_one() -> None:
    with pytest.raises(ValidationError, match="no label to drop"):
        tiny_config(label_dropout=0.1)


def test_files_that_are_no_network_are_named(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    path.write_text("<html>404</html>")
    with pytest.raises(BadInput, match=r"n\.safetensors: wanted a safetensors file"):
        networks.load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(BadInput, match="its metadata is missing"):
        networks.load(path)
    save_file({"weight": torch.zeros(2)}, path, metadata={"network": tiny_config().model_dump_json()})
    with pytest.raises(
        BadInput, match="its network would have 6 blocks of up to 16 channels; it stores 1 tensors of 2"
    ):
        networks.load(path)
    save_file(
        {f"weight{i}": torch.zeros(8) for i in range(8)}, path, metadata={"network": tiny_config().model_dump_json()}
    )
    with pytest.raises(BadInput, match="not those of its own configuration"):
        networks.load(path)
