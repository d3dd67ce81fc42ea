"""Prompts become rows of a condition table, committed and verified like shards, and before them."""

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.common.errors import BadInput, WorkFailed
from pipeline.dataset import conditions
from pipeline.dataset.conditions import Chunk, ConditionTable, Prompts
from pipeline.dataset.manifest import read_manifest
from pipeline.dataset.merge import merge
from pipeline.generation.chunk import ChunkEncoder
from pipeline.generation.generate import generate
from pipeline.generation.parts import Part, generate_part
from pipeline.generation.verify import recheck_table, repair, verify
from pipeline.storage import lease
from pipeline.storage.store import Folder
from pipeline.teachers.loading import DiffusersSource
from tests.support.command import assert_one_line, call
from tests.support.killing import ended, fork, on_every_step
from tests.support.plans import make_plan
from tests.support.problems import GaussianFlow
from tests.support.prompts import CPU, PROMPTS, prompted, source_of, write_prompts


class Letters:
    """Encodes a prompt as the codes of its letters, in no time."""

    libraries = ""

    def row(self, prompts: Prompts, number: int) -> Mapping[str, Tensor]:
        texts = [*prompts.prompts, prompts.negative or ""]
        return {"prompt_embeds": torch.tensor([[float(ord(letter))] for letter in texts[number] + "."])}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline whose text encoder and network take no time, and a table in chunks of three rows."""

    def load(source: DiffusersSource, plan: Any, *_: Any, **__: Any) -> Any:
        teacher = source.describe(1.0, True, None, plan.num_classes)
        return replace(teacher, velocity=GaussianFlow().velocity)

    monkeypatch.setattr(DiffusersSource, "encoder", lambda *_: Letters())
    monkeypatch.setattr(DiffusersSource, "load_planned", load)
    monkeypatch.setattr(conditions, "CHUNK_ROWS", 3)
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)  # a run that follows a killed one waits beside its lease


def files(folder: Path) -> dict[str, bytes]:
    """All files but those that hold times."""
    timed = ("manifest.parquet", "config.yaml")
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.name not in timed and (path.suffix != ".json" or path.name == "plan.json")
    }


def test_each_prompt_is_encoded_once_and_alone_and_every_record_names_its_row(
    pipelines: Callable[[str], Path], tmp_path: Path
) -> None:
    manifest = generate(prompted(tmp_path, pipelines("sd")))
    plan, store = manifest.plan, manifest.store
    assert plan.conditions is not None
    assert (plan.num_classes, plan.conditions.num_rows) == (3, 4), "the last row is the negative prompt's"
    assert plan.draw_labels(range(7)).tolist() == [0, 1, 2, 0, 1, 2, 0], "each prompt is drawn equally often"
    table, source = ConditionTable(store, plan.conditions), source_of(pipelines("sd"))
    prompts, encoder = Prompts(prompts=PROMPTS, negative=""), source.encoder(CPU)
    for number in (0, 1, 2, -1):
        wanted, stored = encoder.row(prompts, number), table.row(number)
        assert stored["prompt_embeds"].equal(wanted["prompt_embeds"].bfloat16())
    assert table.row(-1)["prompt_embeds"].equal(table.row(3)["prompt_embeds"])
    result = verify(store)
    recheck_table(store, result, source, CPU)
    assert (result.faults, len(result.notes)) == ([], 2)
    (numerics,) = result.ledger.numerics
    assert numerics.libraries.startswith("diffusers ")


@pytest.mark.usefixtures("quick")
def test_a_run_killed_at_any_write_of_its_table_and_run_again_is_as_if_undisturbed(
    pipelines: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "calm").mkdir()
    generate(prompted(tmp_path / "calm", pipelines("sd"), n=4))
    wanted = files(tmp_path / "calm" / "data")
    for step in range(1000):
        folder = tmp_path / f"killed-{step}"
        folder.mkdir()
        config = prompted(folder, pipelines("sd"), n=4)
        if ended(fork(lambda: kill_at(config, step))) != -signal.SIGKILL:  # noqa: B023 - called at once
            break
        generate(config)
        assert files(folder / "data") == wanted, f"step {step}"
    assert step > 10


def kill_at(config: Any, step: int) -> None:
    """Generate, but die before the `step`-th write to a file of the table."""
    left = iter(range(step, -1, -1))

    def die() -> None:
        names = os.listdir(config.out) if os.path.isdir(config.out) else []  # noqa: PTH112, PTH208
        has_table = any(name.startswith((".", "prompts", "conditions")) for name in names)
        if has_table and not any(name.startswith("shard") for name in names) and next(left, None) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    on_every_step(Path(config.out), die)
    generate(config)


@pytest.mark.usefixtures("quick")
def test_two_runs_have_the_same_bytes(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        generate(prompted(folder, pipelines("sd")))
    assert files(folders[0] / "data") == files(folders[1] / "data")


@pytest.mark.usefixtures("quick")
def test_parts_share_the_chunks_of_the_table_and_merged_parts_have_it(
    pipelines: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, shared, far, merged = (tmp_path / name for name in ("whole", "shared", "far", "merged"))
    for folder in (whole, shared, far):
        folder.mkdir()
    wanted = generate(prompted(whole, pipelines("sd")))
    encode, encoded = ChunkEncoder.encode, list[int]()

    def counted(encoder: ChunkEncoder, chunk: Chunk) -> Any:
        encoded.append(chunk.number)
        return encode(encoder, chunk)

    monkeypatch.setattr(ChunkEncoder, "encode", counted)
    for number in (1, 2):
        generate_part(prompted(shared, pipelines("sd")), Part(number, 2))
    assert sorted(encoded) == [0, 1]
    assert files(shared / "data") == files(whole / "data")
    generate_part(prompted(far, pipelines("sd")), Part(2, 2))
    generate_part(prompted(tmp_path, pipelines("sd")), Part(1, 2))
    assert merge([str(far / "data"), str(tmp_path / "data")], str(merged)).sha256 == wanted.sha256
    assert files(merged) == files(whole / "data")
    assert not verify(Folder(merged)).faults


@pytest.mark.usefixtures("quick")
def test_a_chunk_whose_file_is_gone_is_made_again(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    config = prompted(tmp_path, pipelines("sd"))
    store = generate(config).store
    whole = files(tmp_path / "data")
    store.remove("conditions-000001.safetensors")
    generate(config)
    assert files(tmp_path / "data") == whole


@pytest.mark.usefixtures("quick")
def test_what_differs_from_the_prompts_of_a_plan_is_refused(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    config = prompted(tmp_path, pipelines("sd"))
    generate(config)
    write_prompts(tmp_path, (*PROMPTS, "snow"))
    with pytest.raises(BadInput, match="holds another plan"):
        generate(config)
    write_prompts(tmp_path)
    with pytest.raises(BadInput, match="holds another plan"):
        generate(config.model_copy(update={"negative_prompt": "blurry"}))


@pytest.mark.usefixtures("quick")
def test_a_damaged_table_is_found_and_made_again(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    config = prompted(tmp_path, pipelines("sd"))
    store = generate(config).store
    whole = files(tmp_path / "data")
    damaged = bytearray(whole["conditions-000001.safetensors"])
    damaged[-1] ^= 1
    store.write("conditions-000001.safetensors", bytes(damaged))
    plan = read_manifest(store).plan
    assert plan.conditions is not None
    with pytest.raises(WorkFailed, match="not those that were committed"):
        ConditionTable(store, plan.conditions).row(-1)
    result = verify(store)
    assert [fault.name for fault in result.faults] == ["conditions-000001.safetensors"]
    repair(store, result)
    generate(config)
    assert files(tmp_path / "data")["conditions-000001.safetensors"] == whole["conditions-000001.safetensors"]
    assert not verify(store).faults


@pytest.mark.usefixtures("quick")
def test_text_encoders_that_do_not_fit_are_said(
    pipelines: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory is left")

    monkeypatch.setattr(Letters, "row", full)
    message = r"conditions 000000 .* fewer workers, or a device with more memory: prompts are encoded one at a time"
    with pytest.raises(WorkFailed, match=message):
        generate(prompted(tmp_path, pipelines("sd")))


@pytest.mark.proof
def test_two_and_four_workers_make_the_bytes_of_one(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    made = []
    for workers in (1, 2, 4):
        (folder := tmp_path / str(workers)).mkdir()
        changes = {} if workers == 1 else {"executor": "ray", "workers": workers, "gpus_per_worker": 0}
        manifest = generate(prompted(folder, pipelines("sd"), **changes))
        made.append((manifest.sha256, files(folder / "data")))
    assert made[0] == made[1] == made[2]


def test_plans_from_before_there_were_prompts_keep_their_digest() -> None:
    plan = make_plan()
    assert plan.sha256 == "968cd8fe07bb7b9b1beaa123997ee3d5f67db5a18b8eb27e6711f8df6a3d5b35"
    assert not {"conditions", "shift", "latents"} & plan.model_dump().keys()


def test_shift_moves_the_times_and_keeps_their_ends() -> None:
    even, moved = make_plan(num_states=3).times(0), make_plan(num_states=3, shift=3.0).times(0)
    assert moved[[0, -1]].tolist() == [1.0, 0.0]
    torch.testing.assert_close(moved[1:-1], 3 * even[1:-1] / (1 + 2 * even[1:-1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": None}, "draws from prompts: give --prompts FILE"),
        ({"size": "31x32"}, "wanted sides that 2 divides"),
        ({"precision": "fp16", "teacher": "flux-schnell", "guidance_scale": 1}, "take bf16"),
        ({"teacher": "flux-dev", "negative_prompt": "blurry"}, "it takes no negative prompt"),
        ({"teacher": "flux-schnell"}, "leave guidance_scale"),
        ({"teacher": "ddpm", "guidance_scale": 1}, "takes no prompts"),
        ({"teacher": "dit", "prompts": None, "size": 16}, "which it draws alone"),
    ],
)
def test_what_a_pipeline_cannot_do_is_refused_in_one_line(
    changes: dict[str, Any], message: str, pipelines: Callable[[str], Path], tmp_path: Path
) -> None:
    config = prompted(tmp_path, pipelines(changes.pop("teacher", "sd")), **changes)
    with pytest.raises(BadInput, match=message) as refused:
        generate(config)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "data").exists()


def test_other_teachers_take_neither_prompts_nor_a_size(tmp_path: Path) -> None:
    flags = ["--teacher", "tests.support.problems:gaussian", "--n", 4, "--out", tmp_path / "data"]
    prompts = ["--prompts", write_prompts(tmp_path)]
    assert_one_line(call(tmp_path, "generate", *flags, *prompts, code=2), "takes no prompts")
    assert_one_line(call(tmp_path, "generate", *flags, "--size", 32, code=2), "--size are for diffusers")


def test_prompts_that_are_cut_are_counted(
    pipelines: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = Prompts(prompts=("a cat", "a very long story of many words"), negative="")
    assert list(source_of(pipelines("sd")).notes(prompts)) == [
        "1 of 2 prompts are cut at 16 tokens, all that the text encoders take"
    ]
