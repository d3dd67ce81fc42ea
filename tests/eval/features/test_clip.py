"""The CLIP score beside transformers' own CLIPModel, on a tiny one with random weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers

from eval.features import clip
from eval.features.clip import Clip, find_clip, load_clip
from eval.features.weights import Unavailable
from pipeline.common.errors import BadInput
from tests.support.clip import SIDE, save_clip

CPU = torch.device("cpu")
PROMPTS = ["a cat", "two very large dogs", "rain"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Clip:
    return load_clip(str(folder), CPU)


def test_the_score_is_the_cosine_that_transformers_own_model_gives(folder: Path, model: Clip) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 3, SIDE, SIDE), dtype=np.uint8)
    theirs = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    tokens = tokenizer(PROMPTS, padding=True, truncation=True, return_tensors="pt")
    mean, std = (torch.tensor(values)[:, None, None] for values in (clip.MEAN, clip.STD))
    with torch.no_grad():
        found = theirs(**tokens, pixel_values=(torch.from_numpy(images) / 255 - mean) / std)
    cosines = (found.image_embeds * found.text_embeds).sum(1)
    texts, _ = model.embed(PROMPTS)
    for i, cosine in enumerate(cosines.tolist()):
        score = model.score(model.images.extract(images[i : i + 1]).features, texts[i : i + 1])
        assert score == pytest.approx(100 * max(cosine, 0), abs=1e-4)


def test_what_does_not_fit_its_prompt_at_all_scores_zero(model: Clip) -> None:
    ahead = np.array([[1, 0], [0, 1]], np.float32)
    assert model.score(ahead, ahead) == 100
    assert model.score(ahead, -ahead) == 0
    assert model.score(ahead, ahead * np.array([[1], [-1]], np.float32)) == 50


def test_an_image_keeps_its_shape_and_loses_what_is_beside_the_middle() -> None:
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = 200
    assert (clip._resize(10, wide)[2:-2, 2:-2] == 200).all()
    np.testing.assert_array_equal(clip._resize(10, wide.transpose(1, 0, 2)), clip._resize(10, wide).transpose(1, 0, 2))


def test_prompts_that_are_longer_than_it_takes_are_cut_and_counted(model: Clip) -> None:
    features, num_cut = model.embed([*PROMPTS, "x" * 40])
    assert (len(features), num_cut) == (4, 2)  # letter by letter, "two very large dogs" is cut too
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)


def changed(folder: Path, tmp_path: Path, **values: Any) -> Path:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | values))
    return copy


def test_only_safetensors_are_read(folder: Path, tmp_path: Path) -> None:
    copy = changed(folder, tmp_path)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(
        BadInput, match=r"wanted weights in .safetensors, without a variant; it holds pytorch_model.bin"
    ):
        find_clip(str(copy))


def test_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="wanted a CLIPModel of transformers; its model_type is bert"):
        find_clip(str(changed(folder, tmp_path, model_type="bert")))


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_weights_of_another_configuration_are_refused(folder: Path, tmp_path: Path, part: str) -> None:
    config = json.loads((folder / "config.json").read_text())[part]
    copy = changed(folder, tmp_path, **{part: config | {"num_hidden_layers": 2}})
    with pytest.raises(BadInput, match="its weights are not those of its configuration"):
        load_clip(str(copy), CPU)


def test_a_damaged_file_is_one_line(folder: Path, tmp_path: Path) -> None:
    copy = changed(folder, tmp_path)
    (copy / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(BadInput, match="wanted a CLIPModel and its tokenizer"):
        load_clip(str(copy), CPU)


def test_a_name_is_looked_for_in_the_hubs_cache_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="there is none: hf download OWNER/NAME puts it there"):
        find_clip("nobody/nothing")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: str(folder / file))
    assert find_clip("nobody/nothing") == folder
    assert load_clip(None, CPU).images.title == f"CLIP, {clip.DEFAULT}, 12 features"


def test_without_a_name_and_without_the_usual_model_it_says_how_to_give_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: None)
    with pytest.raises(Unavailable, match="--clip FOLDER names a folder of transformers' CLIPModel in safetensors"):
        load_clip(None, CPU)
