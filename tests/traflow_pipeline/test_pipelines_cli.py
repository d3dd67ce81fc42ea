"""A pipeline of diffusers on the command line: what is latents there is shown in pixels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.numpy import load_file

from pipeline.dataset.manifest import read_manifest
from pipeline.flow.solver import Solver
from pipeline.generation.dry_run import dry_run
from pipeline.generation.generate import generate
from pipeline.storage.store import Folder
from pipeline.teachers import check
from tests.support.command import assert_one_line, call
from tests.support.prompts import prompted, source_of, write_prompts

SMALL = [part for key in ("batch_size", "block_size", "shard_size") for part in ("--set", f"{key}=4")]


@pytest.fixture
def teacher(pipelines: Callable[[str], Path], tmp_path: Path) -> list[object]:
    return ["--teacher", f"diffusers:{pipelines('sd3')}", "--prompts", write_prompts(tmp_path)]


def test_check_shows_decoded_pictures(
    pipelines: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "SOLVER", Solver(name="euler", num_steps=32))
    flags = ["--prompts", write_prompts(tmp_path), "--n", 4, "--out", tmp_path / "check.png"]
    call(tmp_path, "teachers", "check", f"diffusers:{pipelines('sd3')}", *flags)
    assert Image.open(tmp_path / "check.png").mode == "RGB"


def test_a_data_set_of_prompts_is_verified_and_shown_in_pixels(
    pipelines: Callable[[str], Path], tmp_path: Path
) -> None:
    generate(prompted(tmp_path, pipelines("sd3")))
    assert "row 3, encoded again: every bit the same" in call(tmp_path, "verify", tmp_path / "data").stdout
    found = call(tmp_path, "inspect", tmp_path / "data", "--out", tmp_path / "data.png", "--n", 2)
    assert "data.png: from noise to sample, record 0, record " in found.stdout
    assert Image.open(tmp_path / "data.png").size[1] > 0


def test_samples_are_saved_as_latents_and_drawn_as_pixels(teacher: list[object], tmp_path: Path) -> None:
    flags = [*teacher, "--n", 3, "--steps", 2]
    for name in ("s.png", "s.npy", "s.safetensors", "s.npz", "folder"):
        call(tmp_path, "sample", *flags, "--out", tmp_path / name)
    latents = np.load(tmp_path / "s.npy")
    assert latents.shape == (3, 4, 8, 8)
    np.testing.assert_array_equal(load_file(tmp_path / "s.safetensors")["samples"], latents)
    assert np.load(tmp_path / "s.npz")["arr_0"].shape == (3, 8, 8, 3)
    assert sorted(path.suffix for path in (tmp_path / "folder").iterdir()).count(".png") == 3


def test_size_and_shift_are_part_of_the_plan(teacher: list[object], tmp_path: Path) -> None:
    flags = [*teacher, "--n", 4, "--out", tmp_path / "data", "--states", 1, "--executor", "inline", "--size", "8x12"]
    call(tmp_path, "generate", *flags, *SMALL, "--shift", 2, "--solver", "euler", "--steps", 3)
    plan = read_manifest(Folder(tmp_path / "data")).plan
    assert (plan.shape, plan.shift, plan.latents) == ((4, 8, 12), 2.0, True)
    found = call(tmp_path, "generate", *flags, *SMALL, "--solver", "euler", "--steps", 3, code=2)
    assert_one_line(found, "shift: 2.0 there, 3.0 asked")


def test_dry_run_counts_the_condition_table(teacher: list[object], tmp_path: Path) -> None:
    flags = [*teacher, "--n", "1k", "--out", tmp_path / "data", "--executor", "inline", "--dry-run"]
    found = call(tmp_path, "generate", *flags, *SMALL, "--solver", "euler", "--steps", 9)
    assert "besides of conditions, for 3 prompts" in found.stdout
    assert not (tmp_path / "data").exists()


def test_dry_run_counts_the_bytes_that_generate_then_writes(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    config = prompted(tmp_path, pipelines("sd3"), n=16)
    found = dry_run(config)
    generate(config)
    shards = sum(path.stat().st_size for path in (tmp_path / "data").glob("*.tar"))
    table = sum(path.stat().st_size for path in (tmp_path / "data").glob("conditions-*.safetensors"))
    assert found.num_bytes == pytest.approx(shards, rel=0.01)
    assert found.table_bytes == pytest.approx(table, rel=0.01)
    seconds = 4 * found.batch_seconds  # of batches of four
    assert found.seconds == pytest.approx(seconds)


def test_a_pipeline_without_its_prompts_is_refused_in_one_line(teacher: list[object], tmp_path: Path) -> None:
    assert_one_line(call(tmp_path, "sample", *teacher[:2], code=2), "give --prompts FILE")
    assert_one_line(call(tmp_path, "sample", *teacher, "--size", "big", code=2), "size")


def test_decoding_is_what_the_pipeline_does(pipelines: Callable[[str], Path]) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    decode = source_of(pipelines("sd3")).decoder(torch.device("cpu"))
    assert decode is not None
    vae = DiffusionPipeline.from_pretrained(pipelines("sd3")).vae
    with torch.no_grad():
        wanted = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
    torch.testing.assert_close(decode(latents), wanted)
