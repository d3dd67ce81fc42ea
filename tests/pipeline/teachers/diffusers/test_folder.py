"""A pipeline that brings code, pickles or a second network is refused by name; nothing of it is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import BadInput
from pipeline.teachers.diffusers.folder import open_folder


@pytest.fixture
def ddpm(pipelines: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(pipelines("ddpm"), tmp_path / "ddpm"))


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder: Path) -> str:
    with pytest.raises(BadInput) as refused:
        open_folder(str(folder))
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_a_pipeline_of_another_kind_is_refused_with_those_that_are_known(ddpm: Path) -> None:
    rewrite(ddpm / "model_index.json", _class_name="StableDiffusion3InpaintPipeline")
    assert "did you mean 'StableDiffusion3Pipeline'" in refusal(ddpm)


def test_a_pipeline_of_two_networks_is_refused_by_name(ddpm: Path) -> None:
    two = {"_class_name": "WanPipeline", "transformer_2": ["diffusers", "WanTransformer3DModel"]}
    rewrite(ddpm / "model_index.json", **two)
    assert "two networks (transformer_2 is the second)" in refusal(ddpm)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("model_index.json", {"_class_name": ["my_pipeline", "MyPipeline"]}),
        ("model_index.json", {"unet": ["my_network", "MyUNet"]}),
        ("unet/config.json", {"auto_map": {"AutoModel": "my_network.MyUNet"}}),
    ],
)
def test_code_that_a_pipeline_brings_is_not_run(ddpm: Path, file: str, changes: dict[str, Any]) -> None:
    (ddpm / "my_network.py").write_text("raise SystemExit('it ran')")
    rewrite(ddpm / file, **changes)
    assert "code of its own" in refusal(ddpm)


def test_pickles_are_refused_by_name(ddpm: Path) -> None:
    weights = ddpm / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert "wanted weights in .safetensors, without a variant; it holds diffusion_pytorch_model.bin" in refusal(ddpm)


def test_another_network_than_the_pipelines_is_refused(ddpm: Path) -> None:
    rewrite(ddpm / "unet" / "config.json", _class_name="UNet2DConditionModel")
    assert "wanted the unet of a DDPMPipeline, UNet2DModel; it is UNet2DConditionModel" in refusal(ddpm)


def test_a_configuration_that_lacks_what_decides_its_sizes_is_refused(ddpm: Path) -> None:
    rewrite(ddpm / "unet" / "config.json", block_out_channels=None)
    assert "wanted the configuration of a UNet2DModel" in refusal(ddpm)


def test_a_folder_without_an_index_is_no_pipeline(tmp_path: Path) -> None:
    assert "it holds no model_index.json" in refusal(tmp_path)
    assert "there is none" in refusal(tmp_path / "missing")


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "diffusers" else object())
    with pytest.raises(BadInput, match="wanted the packages diffusers and transformers; pip install diffusers"):
        open_folder("somewhere")


def test_other_weights_or_another_configuration_are_another_teacher(ddpm: Path) -> None:
    before = open_folder(str(ddpm)).network_sha256
    rewrite(ddpm / "scheduler" / "scheduler_config.json", beta_end=0.03)
    assert open_folder(str(ddpm)).network_sha256 != before
