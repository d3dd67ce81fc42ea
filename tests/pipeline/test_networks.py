from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from pipeline import networks
from pipeline.errors import BadInput
from tests.problems import tiny_config, tiny_network

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
    x = torch.randn(2, network.config.image_channels, 4, 4)
    assert network(x, torch.tensor([0.1, 0.7])).shape == x.shape


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


def test_files_that_are_no_network_are_named(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    path.write_text("<html>404</html>")
    with pytest.raises(BadInput, match=r"n\.safetensors: wanted a safetensors file"):
        networks.load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(BadInput, match="its metadata is missing"):
        networks.load(path)
    save_file({"weight": torch.zeros(2)}, path, metadata={"network": tiny_config().model_dump_json()})
    with pytest.raises(BadInput, match="not those of its own configuration"):
        networks.load(path)
