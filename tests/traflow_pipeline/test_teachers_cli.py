"""Teachers of others through the command line: real files, a real server."""

import os
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.support.command import assert_one_line, call, run
from tests.support.originals import TINY_ADM, TINY_EDM, TINY_SCORE_SDE, write_entry
from tests.support.problems import save_tiny_teacher

DOCS = Path(__file__).parents[2] / "docs"
SIZES = (
    *("--states", 1, "--solver", "rk4", "--steps", 2),
    *("--set", "shard_size=2", "--set", "batch_size=2", "--set", "block_size=2"),
)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "teachers"
    folder.mkdir()
    monkeypatch.setenv("TRAFLOW_TEACHERS", str(folder))
    return folder


@pytest.mark.parametrize("name", TINY_EDM + TINY_SCORE_SDE + TINY_ADM)
def test_a_checkpoint_of_every_family_is_generated_from_by_its_name(name: str, own_folder: Path) -> None:
    write_entry(name, own_folder)
    folder = own_folder.parent
    flags = ("--n", 4, "--out", "data", "--executor", "inline", *SIZES)
    found = call(folder, "generate", "--teacher", f"tiny-{name}", *flags)
    which = "the weights in the file" if name in TINY_ADM else "the EMA weights"
    assert f"teacher tiny-{name}: the" in found.stdout
    assert which in found.stdout
    assert "4 trajectories" in found.stdout


def test_a_student_begins_as_an_edm_teacher_and_goes_the_whole_way_on_ray(own_folder: Path) -> None:
    write_entry("edm-vp", own_folder)
    folder = own_folder.parent
    call(folder, "generate", "--teacher", "tiny-edm-vp", "--n", 8, "--out", "data", "--workers", 1, *SIZES)
    call(folder, "verify", "data")
    call(folder, "train", "--data", "data", "--out", "run", "--steps", "2")
    call(folder, "sample", "run", "--n", 4, "--steps", 2, "--out", "samples.png")
    assert Image.open(folder / "samples.png").width > 40


def test_guidance_is_part_of_the_plan_and_refused_where_a_teacher_was_not_trained_for_it(own_folder: Path) -> None:
    entry = write_entry("adm", own_folder)
    folder = own_folder.parent
    command = ("generate", "--teacher", "tiny-adm", "--n", 4, "--out", "data", "--executor", "inline", *SIZES)
    found = call(folder, *command, "--guidance-scale", 2, code=2)
    assert_one_line(found, "guidance", "trained without dropping labels")
    content = yaml.safe_load(entry.read_text())
    content["network"]["label_dropout"] = 0.1
    entry.write_text(yaml.safe_dump(content))
    call(folder, *command, "--guidance-scale", 2)
    call(folder, "verify", "data")
    assert_one_line(call(folder, *command, code=2), "guidance_scale: 2.0 there, 1.0 asked")


def test_check_says_whether_a_teacher_turns_noise_into_data_and_draws_it(own_folder: Path) -> None:
    folder = own_folder.parent
    found = call(folder, "teachers", "check", "digits", "--n", 4)
    for text in ("turns noise into data", "yes", "evaluations of dopri5 1e-5", "straightness", "188,769"):
        assert text in found.stdout
    assert Image.open(folder / "teacher.png").width > 40
    write_entry("slimflow", own_folder)  # random weights: whatever they do, it is not data
    found = call(folder, "teachers", "check", "tiny-slimflow", "--n", 2, code=1)
    assert_one_line(found, "tiny-slimflow", "does not end in data", "data_range")


def test_the_picture_of_a_teacher_with_classes_has_a_row_for_each(tmp_path: Path) -> None:
    save_tiny_teacher(tmp_path / "tiny.safetensors", num_classes=3)
    found = call(tmp_path, "teachers", "check", "tiny.safetensors", "--n", 6, code=1)
    assert "teacher.png: 3 classes, each from the same noise" in found.stdout
    assert Image.open(tmp_path / "teacher.png").height == 3 * 42 - 2


class Ranges(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "www").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(tmp_path / "www")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_teacher_is_fetched_pinned_listed_and_generated_from(own_folder: Path, server: str, tmp_path: Path) -> None:
    entry = write_entry("slimflow", tmp_path / "www")
    source = {"source": f"{server}/slimflow.pth", "data_set": "noise", "licence": "MIT"}
    (own_folder / "far.yaml").write_text(yaml.safe_dump({**yaml.safe_load(entry.read_text()), **source}))
    generate = ("generate", "--teacher", "far", "--n", 2, "--out", "data", "--executor", "inline", *SIZES)
    assert_one_line(call(tmp_path, *generate, code=2), "it is not there", "teachers fetch far", source["source"])
    assert re.search(r"far .* MIT +no +127\.0\.0\.1", call(tmp_path, "teachers").stdout)
    found = call(tmp_path, "teachers", "fetch", "far")
    digest = re.search(r"sha256 ([0-9a-f]{64}), pinned in slimflow\.pth\.sha256", found.stdout)
    assert digest
    assert digest[1] in (own_folder / "slimflow.pth.sha256").read_text()
    assert re.search(r"far .* MIT +yes +127\.0\.0\.1", call(tmp_path, "teachers").stdout)
    call(tmp_path, *generate)
    (tmp_path / "www" / "slimflow.pth").unlink()
    call(tmp_path, "teachers", "fetch", "far")  # it is here already
    (own_folder / "slimflow.pth").unlink()
    assert_one_line(call(tmp_path, "teachers", "fetch", "far", code=1), "404", "by hand")


MY_UNET = """
from diffusers import DDPMScheduler, UNet2DModel
net = UNet2DModel(
    sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)
net.save_pretrained("my-unet")
DDPMScheduler().save_pretrained("my-unet")
"""


def test_the_documented_example_of_a_diffusers_model_is_found_by_ray(tmp_path: Path) -> None:
    example = re.search(r"```python\n# my_ddpm\.py\n(.*?)```", (DOCS / "how-to" / "teacher.md").read_text(), re.DOTALL)
    assert example
    (tmp_path / "my_ddpm.py").write_text(example[1])
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        exec(MY_UNET, {})
    finally:
        os.chdir(here)
    run(tmp_path, "generate", "--teacher", "my_ddpm:load", "--n", 4, "--out", "data", "--workers", 1, *SIZES)
