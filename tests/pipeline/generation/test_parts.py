"""Parts, each a process of its own, killed and overlapping: the data set is the undisturbed one."""

import os
import random
import signal
import time
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.common.errors import BadInput, WorkFailed
from pipeline.dataset.manifest import MANIFEST, Manifest, read_manifest
from pipeline.generation.generate import generate
from pipeline.generation.parts import Part, generate_part
from pipeline.storage import lease
from pipeline.storage.lease import hold_lease
from pipeline.storage.store import Folder
from pipeline.teachers.teacher import Teacher
from tests.support import killing
from tests.support.command import assert_one_line, call
from tests.support.killing import ended, fork
from tests.support.plans import config, make_plan
from tests.support.problems import SHAPE, GaussianFlow, shard_bytes


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return generate(config(tmp_path_factory.mktemp("undisturbed") / "data"))


def shards(data: Path) -> set[int]:
    return {int(path.stem.removeprefix("shard-")) for path in data.glob("shard-*.json")}


def test_shares_are_disjoint_and_cover_the_set() -> None:
    every = make_plan().shards(100)
    shares = [[shard.number for shard in Part(number, 5).share(every)] for number in range(1, 6)]
    assert sorted(chain(*shares)) == [shard.number for shard in every]
    assert shares[2] == [2, 7, 12]


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/4", "1/\N{FULLWIDTH DIGIT FOUR}"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=f"--part {text}: wanted K/N with K from 1 to N"):
        Part.parse(text)


def test_a_part_makes_its_share_and_nothing_else_and_the_last_one_writes_the_manifest(
    tmp_path: Path, undisturbed: Manifest
) -> None:
    asked = config(tmp_path / "data")
    assert generate_part(asked, Part(2, 2)) is None
    assert shards(tmp_path / "data") == {1, 3}
    assert not (tmp_path / "data" / MANIFEST).exists()
    assert generate_part(asked, Part(2, 2)) is None, "again, it has nothing to do"
    last = generate_part(asked, Part(1, 2))
    assert last is not None
    assert shard_bytes(last) == shard_bytes(undisturbed)
    assert read_manifest(Folder(tmp_path / "data")).sha256 == undisturbed.sha256


def test_a_part_that_steals_makes_what_others_lack(tmp_path: Path, undisturbed: Manifest) -> None:
    alone = generate_part(config(tmp_path / "data"), Part(2, 3), steals=True)
    assert alone is not None
    assert shard_bytes(alone) == shard_bytes(undisturbed)


def test_generate_without_a_part_makes_what_the_parts_left(tmp_path: Path, undisturbed: Manifest) -> None:
    generate_part(config(tmp_path / "data"), Part(1, 3))
    assert generate(config(tmp_path / "data")).sha256 == undisturbed.sha256


def test_a_part_that_ends_beside_a_driver_leaves_the_manifest_to_it(tmp_path: Path) -> None:
    with hold_lease(Folder(tmp_path / "data")):
        assert generate_part(config(tmp_path / "data"), Part(1, 1)) is None
    assert len(shards(tmp_path / "data")) == 5
    assert not (tmp_path / "data" / MANIFEST).exists()


def test_a_damaged_shard_of_another_part_is_made_again_by_the_last_one(tmp_path: Path, undisturbed: Manifest) -> None:
    generate_part(config(tmp_path / "data"), Part(1, 2))
    cut = tmp_path / "data" / "shard-000002.tar"
    cut.write_bytes(cut.read_bytes()[:-10])
    last = generate_part(config(tmp_path / "data"), Part(2, 2))
    assert last is not None
    assert shard_bytes(last) == shard_bytes(undisturbed)


def test_parts_make_a_set_grow(tmp_path: Path, undisturbed: Manifest) -> None:
    generate(config(tmp_path / "data", n=10))
    generate_part(config(tmp_path / "data", n=20), Part(1, 2))
    grown = generate_part(config(tmp_path / "data", n=20), Part(2, 2))
    assert grown is not None
    assert shard_bytes(grown) == shard_bytes(undisturbed)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [({"seed": 1}, "holds another plan"), ({"n": 8}, "is planned for 20 records, 8 were asked")],
)
def test_a_part_of_another_set_is_refused(tmp_path: Path, changes: dict[str, int], fault: str) -> None:
    generate_part(config(tmp_path / "data"), Part(1, 2))
    with pytest.raises(BadInput, match=fault):
        generate_part(config(tmp_path / "data", **changes), Part(2, 2))


def fails_for_one_shard(device: torch.device) -> Teacher:
    """Fails for the noise of records 8 to 11 of seed 0."""
    from pipeline.flow.noise import draw_noise

    bad = torch.from_numpy(draw_noise(0, [9], SHAPE)).half().float()

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        if (x[-1:] == bad).all():
            raise ValueError("not this one")
        return GaussianFlow().velocity(x, t)

    return Teacher("gaussian", "0" * 64, velocity, SHAPE)


def test_a_shard_that_fails_is_tried_once_and_named(tmp_path: Path) -> None:
    asked = config(tmp_path / "data", teacher="tests.pipeline.generation.test_parts:fails_for_one_shard")
    with pytest.raises(WorkFailed, match=r"1 of 5 shards failed: shard 000002 .*not this one .*; the others"):
        generate_part(asked, Part(1, 2), steals=True)
    assert shards(tmp_path / "data") == {0, 1, 3, 4}


def test_parts_that_are_killed_at_random_and_run_again_beside_each_other_are_as_if_undisturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three processes at once, each killed four times; the last round ends by itself."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)
    calm, killed, rng = tmp_path / "calm", tmp_path / "killed", random.Random(0)
    n = 400
    started = time.monotonic()
    assert ended(fork(lambda: generate(killing.config(calm, n)))) == 0
    seconds = time.monotonic() - started

    def begin(number: int) -> int:
        return fork(lambda: generate_part(killing.config(killed, n), Part(number, 3), steals=number == 3))

    made = []
    for _ in range(4):
        children = [begin(number) for number in (1, 2, 3)]
        for child in children:
            time.sleep(rng.uniform(0, seconds / 15))
            os.kill(child, signal.SIGKILL)
        assert {ended(child) for child in children} <= {-signal.SIGKILL, 0}
        made.append(len(shards(killed)))
    assert 0 < made[-1] < n // 4, "they were killed in the middle of their work"
    assert {ended(child) for child in [begin(number) for number in (1, 2, 3)]} == {0}
    assert read_manifest(Folder(killed)).sha256 == read_manifest(Folder(calm)).sha256
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in calm.iterdir())


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (("--steal",), "--steal: wanted --part too"),
        (("--part", "1/2", "--workers", "2"), "--part works in this process, without Ray"),
        (("--part", "3/2"), "--part 3/2: wanted K/N with K from 1 to N"),
    ],
)
def test_flags_that_do_not_fit_a_part_are_refused(tmp_path: Path, flags: tuple[str, ...], fault: str) -> None:
    asked = ("generate", "--teacher", "digits", "--n", 8, "--out", "data")
    assert_one_line(call(tmp_path, *asked, *flags, code=2), fault)


def test_the_command_says_what_is_left(tmp_path: Path) -> None:
    asked = ("generate", "--teacher", "tests.support.problems:gaussian", "--n", 20, "--out", "data", "--states", 1)
    sizes = [flag for key in ("shard_size", "batch_size", "block_size") for flag in ("--set", f"{key}=4")]
    said = call(tmp_path, *asked, *sizes, "--part", "1/2").stdout
    assert "part 1/2 is complete; 2 of 5 shards are left to the other parts" in said
    assert "5 of 5" not in said
    assert "digest" in call(tmp_path, *asked, *sizes, "--part", "2/2").stdout
