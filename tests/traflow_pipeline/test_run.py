import shutil
from pathlib import Path

import pytest
import torch
import yaml

from eval.models import open_models
from eval.results import read_report
from pipeline.common.errors import BadInput
from pipeline.storage.store import open_store
from tests.support.runs import write_config
from traflow_pipeline.named_code import remember
from traflow_pipeline.run import Run, open_run, read_run, run_stages, save_run, stage_status
from trainer.checkpoints import checkpoint
from trainer.checkpoints.model import find_model


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def complete(config: Path, place: str, *assignments: str) -> Run:
    plan = open_run(str(config), place, assignments, None)
    run_stages(plan, on_cluster=False, address=None)
    return plan


def status(plan: Run) -> list[str]:
    return [str(stage_status(plan, stage)) for stage in plan.stages]


def test_the_three_stages_run_in_one_folder_and_are_then_skipped(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / "run")
    plan = open_run(str(config), place, [], None)
    assert [line.rpartition("; ")[2] for line in status(plan)] == ["to do"] * 3
    complete(config, place)
    assert status(read_run(place)) == [
        f"generate  {place}/data: 2 of 2 shards, 32 records; complete",
        f"train     {place}/train: 2 of 2 steps; complete",
        f"evaluate  {place}/report: a report of step 2; complete",
    ]
    assert read_report(f"{place}/report").rows
    capsys.readouterr()
    complete(config, place)
    said = capsys.readouterr().out
    assert said.count(", complete") == 3
    assert said.count("nothing to do") == 2
    assert "minimising" not in said


def test_what_a_stage_lacks_is_made_again_and_nothing_else(config: Path, tmp_path: Path) -> None:
    place = str(tmp_path / "run")
    plan = complete(config, place)
    weights = checkpoint.find(tmp_path / "run" / "train") / checkpoint.EMA
    before = weights.stat().st_mtime_ns
    report = tmp_path / "run" / "report" / "evaluate.yaml"  # a cluster knows the same place by another path
    report.write_text(report.read_text().replace(str(tmp_path), f"{tmp_path}/."))
    assert status(plan)[2].endswith("complete")
    report.write_text(report.read_text().replace("seed: 0", "seed: 1"))
    assert status(plan)[2].endswith("of another configuration; to do")
    shutil.rmtree(tmp_path / "run" / "report")
    assert status(plan)[2].endswith("no report; to do")
    complete(config, place)
    assert status(plan)[2].endswith("a report of step 2; complete")
    assert weights.stat().st_mtime_ns == before
    complete(config, place, "evaluate.seed=1")
    assert read_report(f"{place}/report").seed == 1


def test_a_stage_whose_inputs_changed_is_refused(config: Path, tmp_path: Path) -> None:
    place = str(tmp_path / "run")
    complete(config, place)
    with pytest.raises(BadInput, match=r"run/train: it was trained on other data than are asked now"):
        complete(config, place, "generate.n=48")
    shutil.rmtree(tmp_path / "run" / "train")
    complete(config, place, "generate.n=48")
    assert "a report of step 2; complete" in status(read_run(place))[2]


def test_another_plan_in_the_place_is_refused(config: Path, tmp_path: Path) -> None:
    place = str(tmp_path / "run")
    complete(config, place)
    with pytest.raises(BadInput, match="seed: 0 there, 1 asked"):
        complete(config, place, "generate.seed=1")
    with pytest.raises(BadInput, match=r"trainer\.lr"):
        complete(config, place, "train.trainer.lr=0.5")


def test_a_run_may_lie_in_a_store(config: Path, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    complete(config, f"{s3}/run")
    shutil.rmtree(tmp_path / "cache")  # another machine
    plan = read_run(f"{s3}/run")
    assert all(line.endswith("; complete") for line in status(plan))
    run_stages(plan, on_cluster=False, address=None)
    assert set(open_store(f"{s3}/run").sizes()) == {"run.yaml", "data/", "train/", "report/"}


@pytest.mark.parametrize(
    ("assignments", "fault"),
    [
        (["seed=1"], "--set seed: wanted a key of a stage: generate.KEY=..., train.KEY=..., evaluate.KEY=..."),
        (["train.data=elsewhere"], "train.data is elsewhere; wanted .*/data, where generate writes"),
        (["evaluate.checkpoint=elsewhere"], "evaluate.checkpoint is elsewhere; wanted .*/train, train's run"),
        (["generate.number=1"], "unknown key 'generate.number'"),
    ],
)
def test_stages_that_do_not_fit_together_are_refused(config: Path, assignments: list[str], fault: str) -> None:
    with pytest.raises(BadInput, match=fault):
        open_run(str(config), None, assignments, None)


def test_where_there_is_no_run_status_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"nowhere: wanted a run; there is no such folder; run traflow-pipeline run first"
    ):
        read_run(str(tmp_path / "nowhere"))


def test_a_run_that_was_moved_is_complete_from_any_folder(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    complete(Path("tiny.yaml"), "run")
    (tmp_path / "elsewhere").mkdir()
    shutil.move("run", "elsewhere/moved")
    monkeypatch.chdir(tmp_path / "elsewhere" / "moved")
    assert all(line.endswith("; complete") for line in status(read_run(".")))
    monkeypatch.chdir(tmp_path / "elsewhere")
    complete(Path("moved"), "ignored")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["moved"]
    assert not (tmp_path / "run").exists()
    assert open_models(find_model("moved"), "none", torch.device("cpu")).training_data == "moved/data"


def test_a_run_of_before_keeps_its_paths(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = complete(config, "run")
    (tmp_path / "run" / "run.yaml").write_text(yaml.safe_dump(plan.sections()))
    assert all(line.endswith("; complete") for line in status(read_run("run")))


@pytest.mark.parametrize(
    ("assignment", "fault"),
    [
        ("generate.teacher=nobody", "no teacher 'nobody'"),
        ("train.tensorboard=true", "tensorboard: wanted its package"),
        ("train.start=nowhere", "nowhere: wanted a checkpoint"),
        ("train.trainer.batch_size=9", "strides"),
        ("evaluate.reference=nowhere.zip", "nowhere.zip"),
        ("evaluate.features=nothing", "no features 'nothing'"),
    ],
)
def test_what_a_later_stage_lacks_is_said_before_the_first_one_works(
    config: Path, tmp_path: Path, assignment: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.log.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=fault):
        complete(config, str(tmp_path / "new"), assignment)
    assert not (tmp_path / "new").exists()


def test_a_cluster_that_does_not_answer_is_said_first(config: Path, tmp_path: Path) -> None:
    plan = open_run(str(config), str(tmp_path / "new"), [], None)
    with pytest.raises(BadInput, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        run_stages(plan, on_cluster=True, address="127.0.0.1:1")
    assert not (tmp_path / "new").exists()


def test_a_refused_setting_leaves_the_run_as_it_was(config: Path, tmp_path: Path) -> None:
    location = str(tmp_path / "run")
    complete(config, location)
    before = (tmp_path / "run" / "run.yaml").read_bytes()
    for assignment in ("generate.seed=1", "generate.n=48", "train.trainer.lr=0.5", "train.trainer.num_steps=1"):
        with pytest.raises(BadInput):
            complete(config, location, assignment)
    assert (tmp_path / "run" / "run.yaml").read_bytes() == before


@pytest.mark.parametrize("key", ["generate.teacher", "evaluate.teacher", "evaluate.features"])
def test_the_code_that_a_strangers_run_names_is_imported_only_where_the_user_names_it(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    folder, naming = str(tmp_path / "run"), f"{key}=tests.support.problems:gaussian"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "strangers"))
    save_run(open_run(str(config), folder, [naming], None))
    open_run(folder, None, [], None)  # the stranger named it
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "ours"))
    remember({"evaluate": {"features": "tests.support.spaces:pixels"}})  # of the config itself
    with pytest.raises(BadInput, match=rf"as {key}, code that you have not named before.* with --set {naming}"):
        open_run(folder, None, ["train.seed=1"], None)
    open_run(folder, None, [naming], None)
    open_run(folder, None, [], None)


@pytest.mark.parametrize("assignment", ["generate=5", "train=[1]", "evaluate=x"])
def test_a_stage_that_is_no_mapping_is_one_line(config: Path, assignment: str) -> None:
    with pytest.raises(BadInput, match=r"wanted a mapping of keys to values"):
        open_run(str(config), None, [assignment], None)


def test_a_run_does_not_go_into_a_folder_of_something_else(config: Path, tmp_path: Path) -> None:
    for name, said in (("plan.json", "it holds a data set"), ("notes.txt", "it is not empty")):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(BadInput, match=rf"wanted a new or empty folder, or a run; {said}: choose another --out"):
            save_run(open_run(str(config), str(folder), [], None))
        assert [path.name for path in folder.iterdir()] == [name]
