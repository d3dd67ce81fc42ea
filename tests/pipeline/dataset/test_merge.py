"""Sets of one plan, made in two places, joined: the set that would have been made in one."""

from pathlib import Path

import pytest

from pipeline.common.errors import BadInput, WorkFailed
from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.dataset.merge import merge
from pipeline.generation.generate import generate
from pipeline.generation.parts import Part, generate_part
from pipeline.storage.store import Folder
from tests.support.command import assert_one_line, call
from tests.support.plans import config
from tests.support.problems import shard_bytes


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return generate(config(tmp_path_factory.mktemp("whole") / "data"))


@pytest.fixture
def halves(tmp_path: Path) -> tuple[str, str]:
    """Two sites that each made a half of the set."""
    for number, site in enumerate(("a", "b"), 1):
        generate_part(config(tmp_path / site), Part(number, 2))
    return str(tmp_path / "a"), str(tmp_path / "b")


def test_disjoint_halves_are_the_whole(tmp_path: Path, whole: Manifest, halves: tuple[str, str]) -> None:
    merge(halves, str(tmp_path / "c"))
    merged = read_manifest(Folder(tmp_path / "c"))
    assert merged.sha256 == whole.sha256
    assert shard_bytes(merged) == shard_bytes(whole)


def test_overlapping_sets_are_merged_and_again_into_one_of_them(
    tmp_path: Path, whole: Manifest, halves: tuple[str, str]
) -> None:
    generate(config(tmp_path / "d", n=12))
    assert merge([*halves, str(tmp_path / "d")], str(tmp_path / "c")).sha256 == whole.sha256
    assert merge(halves, halves[0]).sha256 == whole.sha256
    assert merge([halves[1]], halves[0]).sha256 == whole.sha256


def test_a_short_last_shard_gives_way_to_the_longer_one(tmp_path: Path, whole: Manifest) -> None:
    generate(config(tmp_path / "short", n=18))
    generate(config(tmp_path / "long"))
    for order in (("short", "long"), ("long", "short")):
        merged = merge([str(tmp_path / name) for name in order], str(tmp_path / "-".join(order)))
        assert merged.sha256 == whole.sha256


def test_what_is_missing_everywhere_is_made_in_the_merged_set(
    tmp_path: Path, whole: Manifest, halves: tuple[str, str]
) -> None:
    for suffix in (".tar", ".json"):
        (Path(halves[1]) / f"shard-000003{suffix}").unlink()
    assert merge(halves, str(tmp_path / "c")).num_records == 16
    assert generate(config(tmp_path / "c")).sha256 == whole.sha256


def test_other_bytes_of_a_shard_are_named(tmp_path: Path, halves: tuple[str, str]) -> None:
    other = generate(config(tmp_path / "d", teacher="tests.pipeline.dataset.test_merge:rounds_otherwise"))
    with pytest.raises(
        BadInput, match=r"shard 000001 \(records 4 to 7\): its bytes in .*d are not those in .*b \(made"
    ):
        merge([halves[1], other.store.location], str(tmp_path / "c"))
    assert not list((tmp_path / "c").glob("shard-*"))


def rounds_otherwise(device: object) -> object:
    from tests.support.problems import GaussianFlow

    return GaussianFlow(mean=0.31).teacher()


def test_a_shard_that_is_not_what_its_marker_says_is_named(tmp_path: Path, halves: tuple[str, str]) -> None:
    tar = Path(halves[0]) / "shard-000002.tar"
    payload = bytearray(tar.read_bytes())
    payload[600] ^= 1
    tar.write_bytes(payload)
    with pytest.raises(WorkFailed, match=r"shard 000002 .*a does not hold what its marker says"):
        merge(halves, str(tmp_path / "c"))


def test_sets_of_different_plans_are_refused(tmp_path: Path, halves: tuple[str, str]) -> None:
    generate(config(tmp_path / "d", seed=1))
    with pytest.raises(BadInput, match=r"d holds another plan \(seed: 1 there, 0 asked\)"):
        merge([halves[0], str(tmp_path / "d")], str(tmp_path / "c"))
    assert not (tmp_path / "c").exists()
    with pytest.raises(BadInput, match="nowhere: wanted a data set"):
        merge([str(tmp_path / "nowhere")], str(tmp_path / "c"))


def test_the_command_prints_the_digest_or_what_is_missing(
    tmp_path: Path, whole: Manifest, halves: tuple[str, str]
) -> None:
    assert f"digest {whole.sha256}" in call(tmp_path, "merge", *halves, "--out", "c").stdout
    said = " ".join(call(tmp_path, "merge", halves[0], "--out", "half").stdout.split())
    assert "12 of 20 records" in said
    assert "run traflow-pipeline generate --out half" in said


def test_several_data_sets_are_no_data_of_a_training(tmp_path: Path, halves: tuple[str, str]) -> None:
    command = ("train", "--data", halves[0], "--data", halves[1], "--out", "run")
    assert_one_line(call(tmp_path, *command, code=2), "--data", "traflow-pipeline merge")
