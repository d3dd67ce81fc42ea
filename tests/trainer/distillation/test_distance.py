import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from pydantic import ValidationError

from pipeline.common.errors import BadInput
from pipeline.storage.hashing import file_sha256
from trainer.distillation import distance
from trainer.distillation.distance import HUBER_C, DistanceConfig, huber, squared_error


def test_distances_are_means_over_components() -> None:
    assert squared_error(torch.full((2, 3, 4, 4), 3.0), torch.ones(2, 3, 4, 4)).tolist() == [4.0, 4.0]
    for shape in ((2, 1, 4, 4), (2, 3, 8, 8)):
        x = torch.full(shape, 3.0)
        torch.testing.assert_close(huber(x, torch.ones(shape)), torch.full((2,), (4 + HUBER_C**2) ** 0.5 - HUBER_C))


def test_huber_is_half_the_square_near_zero_and_the_root_far_away() -> None:
    near, far = torch.full((1, 4), HUBER_C / 100), torch.full((1, 4), 1e3)
    torch.testing.assert_close(huber(near, 0 * near), near[:, 0] ** 2 / (2 * HUBER_C), rtol=1e-3, atol=0)
    torch.testing.assert_close(huber(far, 0 * far), far[:, 0], rtol=1e-5, atol=0)


def test_a_distance_is_named_alone_or_with_its_size() -> None:
    assert DistanceConfig.model_validate("huber").name == "huber"
    assert DistanceConfig.model_validate({"name": "lpips-vgg", "resize": 64}).resize == 64
    for wrong in ("l3", {"name": "l2", "resize": 64}, {"name": "lpips-vgg", "resize": 8}):
        with pytest.raises(ValidationError):
            DistanceConfig.model_validate(wrong)


@pytest.fixture
def backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision's smallest network with random weights, where torch's hub would keep the trained ones."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("TRAFLOW_WEIGHTS", str(tmp_path / "none"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    weights = torchvision.models.squeezenet1_1(weights=None).state_dict()
    torch.save(weights, tmp_path / "hub" / "checkpoints" / distance.BACKBONES["squeeze"])
    distance._lpips.cache_clear()


@pytest.mark.usefixtures("backbone")
@pytest.mark.parametrize("channels", [1, 3])
def test_lpips_is_zero_at_the_target_and_trains_what_is_elsewhere(channels: int) -> None:
    perceptual = DistanceConfig(name="lpips-squeeze", resize=64)
    perceptual.prepare((channels, 8, 8))
    target = torch.rand(2, channels, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(perceptual(target, target), torch.zeros(2))
    x = (target + 0.5).requires_grad_(True)
    values = perceptual(x, target)
    assert values.shape == (2,)
    assert (values > 0).all()
    values.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.abs().max() > 0


def test_lpips_without_its_weights_says_which_file_goes_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("TRAFLOW_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TRAFLOW_OFFLINE", "1")
    distance._lpips.cache_clear()
    with pytest.raises(BadInput) as caught:
        DistanceConfig(name="lpips-vgg", resize=64).prepare((3, 32, 32))
    for text in ("vgg16-397923af.pth", "https://download.pytorch.org/models/", str(tmp_path / "weights"), "OFFLINE"):
        assert text in str(caught.value)


def test_lpips_takes_a_file_of_the_convolutions_alone_from_the_folder_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("TRAFLOW_WEIGHTS", str(tmp_path))
    torch.manual_seed(0)
    state = torchvision.models.squeezenet1_1(weights=None).state_dict()
    features = {name: tensor for name, tensor in state.items() if name.startswith("features.")}
    path = tmp_path / "squeezenet1_1-features.pth"
    torch.save(features, path)
    distance._lpips.cache_clear()
    perceptual = DistanceConfig(name="lpips-squeeze", resize=64)
    perceptual.prepare((3, 32, 32))
    assert perceptual.weights_sha256 == file_sha256(path)
    assert file_sha256(path) in capsys.readouterr().out.replace("\n", "")
    trunk: Any = distance._lpips("squeeze", torch.device("cpu")).net
    torch.testing.assert_close(trunk.slice1[0].weight, features["features.0.weight"])
    torch.save({name: tensor for name, tensor in features.items() if name != "features.0.weight"}, path)
    distance._lpips.cache_clear()
    with pytest.raises(BadInput, match=r"wanted torchvision's features\.0\.weight of \[64, 3, 3, 3\]"):
        perceptual.prepare((3, 32, 32))


def test_a_planted_file_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("TRAFLOW_WEIGHTS", str(tmp_path / "none"))
    path = tmp_path / "hub" / "checkpoints" / distance.BACKBONES["squeeze"]
    path.parent.mkdir(parents=True)
    torch.save({"features.0.weight": Planted(tmp_path / "ran")}, path)
    distance._lpips.cache_clear()
    with pytest.raises(BadInput, match="nothing was executed"):
        DistanceConfig(name="lpips-squeeze", resize=64).prepare((3, 32, 32))
    assert not (tmp_path / "ran").exists()


class Planted:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_lpips_is_for_images_that_are_large_enough() -> None:
    with pytest.raises(BadInput, match="8 pixels are too small for it; set resize: 64"):
        DistanceConfig(name="lpips-squeeze").prepare((3, 8, 8))
    with pytest.raises(BadInput, match="wanted images of 1 or 3 channels"):
        DistanceConfig(name="lpips-squeeze").prepare((4, 32, 32))
