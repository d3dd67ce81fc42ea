"""Real Ray, real processes: whoever does the work, the bytes are the same."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.dataset import GenerateConfig, generate
from pipeline.errors import BadInput, WorkFailed
from pipeline.manifest import read_manifest
from pipeline.store import Folder, aside_of
from pipeline.teachers.teacher import Teacher
from tests.problems import SHAPE, GaussianFlow, folder_of, shard_bytes

FLOW = GaussianFlow()


def config(out: Path, **changes: object) -> GenerateConfig:
    values: dict[str, object] = {
        "teacher": "tests.problems:gaussian",
        "n": 20,
        "out": out,
        "states": 2,
        "executor": "inline",
        "shard_size": 4,
        "batch_size": 2,
        "block_size": 2,
    }
    return GenerateConfig.model_validate({**values, **changes})


def dies_once(device: torch.device) -> Teacher:
    """Kills the process that asks it for the first velocity, as a preempted machine would."""
    marker = Path(os.environ["TRAFLOW_TEST_MARKER"])

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return FLOW.velocity(x, t)

    return Teacher("gaussian", "0" * 64, velocity, SHAPE)


def fails_for_one_shard(device: torch.device) -> Teacher:
    """Not finite for the noise of records 8 to 11 of seed 0."""
    from pipeline.noise import draw_noise

    bad = torch.from_numpy(draw_noise(0, [9], SHAPE)).half().float()

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return FLOW.velocity(x, t) + torch.where((x[-1:] == bad).all(), torch.nan, 0.0)

    return Teacher("gaussian", "0" * 64, velocity, SHAPE)


def test_ray_makes_the_bytes_that_this_process_makes(tmp_path: Path) -> None:
    inline = generate(config(tmp_path / "inline"))
    for workers in (1, 2):
        on_ray = generate(config(tmp_path / f"ray{workers}", executor="ray", workers=workers))
        assert on_ray.sha256 == inline.sha256
        assert shard_bytes(on_ray) == shard_bytes(inline)


def test_a_worker_that_dies_is_replaced_and_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAFLOW_TEST_MARKER", str(tmp_path / "died"))
    undisturbed = generate(config(tmp_path / "inline"))
    source = "tests.pipeline.test_cluster:dies_once"
    disturbed = generate(config(tmp_path / "ray", executor="ray", workers=2, teacher=source))
    assert (tmp_path / "died").exists()
    assert shard_bytes(disturbed) == shard_bytes(undisturbed)


def test_an_address_where_no_cluster_answers_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no Ray cluster at 127\.0\.0\.1:1 \(.*refused\)"):
        generate(config(tmp_path / "data", executor="ray", address="127.0.0.1:1"))


def test_the_same_command_again_touches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = generate(config(tmp_path / "data"))
    before = {path: path.stat().st_mtime_ns for path in folder_of(first).glob("shard-*")}
    second = generate(config(tmp_path / "data"))
    assert {path: path.stat().st_mtime_ns for path in folder_of(first).glob("shard-*")} == before
    assert second.sha256 == first.sha256
    assert "nothing to do" in capsys.readouterr().out


def test_a_set_grows_into_the_set_that_was_asked_at_once(tmp_path: Path) -> None:
    generate(config(tmp_path / "grown", n=10))
    grown = generate(config(tmp_path / "grown", n=20))
    assert shard_bytes(grown) == shard_bytes(generate(config(tmp_path / "whole", n=20)))
    with pytest.raises(BadInput, match="holds 20 records, 10 were asked"):
        generate(config(tmp_path / "grown", n=10))


def test_growing_in_vain_loses_nothing(tmp_path: Path) -> None:
    before = generate(config(tmp_path / "data", n=10))
    with pytest.raises(BadInput, match="no Ray cluster at 127"):
        generate(config(tmp_path / "data", n=20, executor="ray", address="127.0.0.1:1"))
    with pytest.raises(BadInput, match="holds 10 of its 20 records; run traflow-pipeline generate again"):
        read_manifest(Folder(tmp_path / "data"))
    after = generate(config(tmp_path / "data", n=10))
    assert after.sha256 == before.sha256
    assert read_manifest(Folder(tmp_path / "data")).num_records == 10


def test_more_workers_than_the_machine_has_places_for_take_turns(tmp_path: Path) -> None:
    many = config(tmp_path / "ray", executor="ray", workers=5)
    assert generate(many).sha256 == generate(config(tmp_path / "inline")).sha256


def test_what_killed_writers_left_aside_does_not_stand_in_the_way(tmp_path: Path) -> None:
    aside = aside_of(tmp_path / "data" / "plan.json")
    aside.parent.mkdir()
    aside.write_text("{")
    generate(config(tmp_path / "data"))
    assert not aside.exists()


def test_a_damaged_marker_or_a_cut_shard_counts_as_missing(tmp_path: Path) -> None:
    first = generate(config(tmp_path / "data"))
    before = shard_bytes(first)
    (folder_of(first) / "shard-000001.json").write_text("{")
    cut = folder_of(first) / "shard-000003.tar"
    cut.write_bytes(cut.read_bytes()[:-10])
    assert shard_bytes(generate(config(tmp_path / "data"))) == before


def test_a_lost_shard_is_made_again_as_it_was(tmp_path: Path) -> None:
    first = generate(config(tmp_path / "data"))
    before = shard_bytes(first)
    (folder_of(first) / "shard-000001.tar").unlink()
    (folder_of(first) / "shard-000003.json").unlink()
    assert shard_bytes(generate(config(tmp_path / "data"))) == before


def test_another_plan_in_the_folder_is_refused(tmp_path: Path) -> None:
    generate(config(tmp_path / "data"))
    with pytest.raises(BadInput, match=r"holds another plan \(seed: 0 there, 1 asked\)"):
        generate(config(tmp_path / "data", seed=1))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(BadInput, match="not empty and holds no plan"):
        generate(config(tmp_path / "full"))


def test_a_shard_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    source = "tests.pipeline.test_cluster:fails_for_one_shard"
    with pytest.raises(WorkFailed, match=r"1 of 5 shards failed.*shard 000002 \(records 8 to 11\)"):
        generate(config(tmp_path / "data", teacher=source))
    assert len(list((tmp_path / "data").glob("shard-*.tar"))) == 4
    healed = generate(config(tmp_path / "data"))
    assert shard_bytes(healed) == shard_bytes(generate(config(tmp_path / "whole")))
