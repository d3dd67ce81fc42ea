"""Runs as jobs of Slurm: the files of the jobs, what is submitted, and a real Slurm that loses what it can lose."""

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from eval.results import read_report
from pipeline.common.errors import BadInput, WorkFailed
from pipeline.dataset.manifest import read_manifest
from pipeline.storage.store import open_store
from tests.support import slow_teacher, slurm_cluster
from tests.support.command import assert_one_line, call, on_ranks
from tests.support.runs import write_config
from tests.support.slurm_cluster import said, wait_until
from traflow_pipeline.run import Run, open_run, run_stages, save_run
from traflow_pipeline.slurm import job_scripts, submit
from traflow_pipeline.slurm_config import seconds_of
from trainer.checkpoints import checkpoint


def with_slurm(folder: Path, **section: object) -> Path:
    """The smallest config, with a section `slurm`."""
    config = write_config(folder)
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"slurm": section}))
    return config


def open_here(folder: Path, **section: object) -> Run:
    return open_run(str(with_slurm(folder, **section)), str(folder / "run"), [], None, anywhere=True)


def test_generation_is_an_array_training_is_torchrun_and_evaluation_a_process(tmp_path: Path) -> None:
    run = open_here(
        tmp_path, partition="gpu", account="lab", time="2-00:00:00", parts=16, parts_at_once=4, nodes=2, gpus=8, cpus=6,
        sbatch=["--constraint=a100"],
    )  # fmt: skip
    scripts = job_scripts(run)
    for stage, script in scripts.items():
        options = re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)
        assert {"--partition=gpu", "--account=lab", "--time=2-00:00:00", "--requeue", "--constraint=a100"} <= {*options}
        assert "--signal=B:USR1@120" in options
        assert any(option.startswith(f"--output={tmp_path}/run/slurm/{stage}-%") for option in options)
    assert "#SBATCH --array=1-16%4\n" in scripts["generate"]
    assert "#SBATCH --gpus-per-node=1\n" in scripts["generate"]
    work = f'srun --cpus-per-task="$SLURM_CPUS_PER_TASK" {sys.executable} -m traflow_pipeline run {tmp_path}/run'
    named = "--set evaluate.features=tests.support.spaces:pixels"
    assert f"{work} --only generate {named} --part " in scripts["generate"]
    assert "#SBATCH --nodes=2\n" in scripts["train"]
    assert "#SBATCH --gpus-per-node=8\n#SBATCH" in scripts["train"]
    assert "#SBATCH --cpus-per-task=48\n" in scripts["train"]
    assert "-m torch.distributed.run --nnodes=2 --nproc-per-node=8 " in scripts["train"]
    assert f"{work} --only evaluate {named} &" in scripts["evaluate"]


def test_a_job_names_the_users_own_code_to_a_machine_that_does_not_know_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path)
    sections = yaml.safe_load(config.read_text())
    sections["generate"]["teacher"] = "tests.support.problems:gaussian"
    config.write_text(yaml.safe_dump({"generate": sections["generate"]}))
    run = open_run(str(config), str(tmp_path / "run"), [], None, anywhere=True)
    save_run(run)
    command = re.search(r"-m traflow_pipeline (run .*) --part", job_scripts(run)["generate"])
    assert command is not None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "of the node"))
    unnamed = call(tmp_path, "run", tmp_path / "run", "--only", "generate", code=2)
    assert_one_line(
        unnamed, "names 'tests.support.problems:gaussian' as generate.teacher, code that you have not named"
    )
    call(tmp_path, *shlex.split(command[1]))
    assert (tmp_path / "run" / "data" / "manifest.parquet").exists()


def test_the_files_of_jobs_hold_nothing_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"AWS_SECRET_ACCESS_KEY": "not-to-be-told", "WANDB_API_KEY": "nor-this", "RAY_AUTH_TOKEN": "nor-that"}
    for name, secret in secrets.items():
        monkeypatch.setenv(name, secret)
    text = "".join(job_scripts(open_here(tmp_path)).values())
    assert not [word for pair in secrets.items() for word in pair if word in text]


def test_without_gpus_or_requeue_none_is_asked_for(tmp_path: Path) -> None:
    script = job_scripts(open_here(tmp_path, requeue=False))["train"]
    assert "--gpus" not in script
    assert "--no-requeue" in script
    assert "scontrol requeue" not in script


def test_dry_run_prints_the_files_and_writes_nothing(tmp_path: Path) -> None:
    config = with_slurm(tmp_path, parts=3)
    said = call(tmp_path, "run", config, "--out", "run", "--submit", "slurm", "--dry-run").stdout
    assert said.count("#!/bin/bash") == 3
    assert "#SBATCH --array=1-3\n" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("section", "fault"),
    [
        ({"parts": 0}, r"slurm\.parts: wanted 1 or more, got 0"),
        ({"time": "soon"}, r"slurm\.time: wanted minutes, hours:minutes:seconds or days-hours, .*, got 'soon'"),
        ({"partition": "a b"}, r"slurm\.partition: wanted a name without spaces, got 'a b'"),
        ({"time": 43200}, r'slurm\.time: wanted a limit in quotes, such as "12:00:00"'),
        (
            {"time": "3"},
            "jobs of 3 that stop 120 s before their limit, or 60 s earlier, as Slurm may, would never work",
        ),
        ({"gpu": 1}, r"unknown key 'slurm\.gpu'.*did you mean 'slurm\.gpus'"),
        ({"sbatch": ["constraint=a100"]}, r"slurm\.sbatch.*: wanted an option of sbatch, such as --constraint=a100"),
        ({"gpus": 2, "ranks": 4}, "4 ranks on 2 GPUs of a node"),
    ],
)
def test_a_section_that_is_wrong_is_refused(tmp_path: Path, section: dict[str, object], fault: str) -> None:
    with pytest.raises(BadInput, match=fault):
        open_here(tmp_path, **section)


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("9", 540),
        ("9:30", 570),
        ("12:00:00", 43200),
        ("1-12", 129600),
        ("1-0:30", 88200),
        ("2-00:00:01", 172801),
        ("0", 0),
    ],
)
def test_a_limit_is_read_as_slurm_reads_it(limit: str, seconds: int) -> None:
    assert seconds_of(limit) == seconds


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (("--dry-run",), "--dry-run: wanted --submit slurm too"),
        (("--part", "1/2"), "--part: wanted --only generate too"),
        (("--submit", "slurm"), "wanted sbatch on the PATH"),
        (("--submit", "slurm", "--only", "train"), "no --only, --part, --on or --address"),
        (
            ("--submit", "slum"),
            "--submit slum: wanted slurm, or the address of a Ray dashboard",
        ),
        (("--submit", "slurm", "--out", "s3://bucket/run"), "wanted a run in a folder that every node reaches"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    tmp_path: Path, flags: tuple[str, ...], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_one_line(call(tmp_path, "run", write_config(tmp_path), *flags, code=2), fault)


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands that stand for Slurm's: sbatch numbers its calls, and squeue prints the file `live`."""
    commands = {
        "sbatch": 'echo "$@" >> calls; wc -l < calls',
        "squeue": "cat live",
        "sacct": "echo Slurm accounting storage is disabled >&2; exit 1",
    }
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/sh\ncd {tmp_path}\n{text}\n")
        (folder / name).chmod(0o755)
    (tmp_path / "live").touch()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path


def test_each_stage_waits_for_the_one_before_and_a_live_job_is_not_submitted_again(fake_slurm: Path) -> None:
    run = open_here(fake_slurm)
    submit(run)
    folder = fake_slurm / "run" / "slurm"
    assert json.loads((folder / "jobs.json").read_text()) == {"generate": "1", "train": "2", "evaluate": "3"}
    calls = (fake_slurm / "calls").read_text().splitlines()
    assert calls == [
        f"--parsable {folder}/generate.sbatch",
        f"--parsable --dependency=afterok:1 {folder}/train.sbatch",
        f"--parsable --dependency=afterok:2 {folder}/evaluate.sbatch",
    ]
    (fake_slurm / "live").write_text("1 RUNNING\n1 PENDING\n3 PENDING\n")
    submit(run)
    assert (fake_slurm / "calls").read_text().splitlines()[3:] == [
        f"--parsable --dependency=afterok:1 {folder}/train.sbatch"
    ]
    said = call(fake_slurm, "status", "run").stdout
    assert "job 1: 1 pending, 1 running" in said
    assert "job 4: ended" in said


def test_a_job_that_slurm_refuses_is_said(fake_slurm: Path) -> None:
    (fake_slurm / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2; exit 1\n")
    with pytest.raises(WorkFailed, match=r"generate: Slurm refused sbatch \(sbatch: error: invalid partition\)"):
        submit(open_here(fake_slurm))


def test_answers_that_are_not_slurms_are_said_or_passed_over(fake_slurm: Path) -> None:
    (fake_slurm / "live").write_text("a line of another kind\n\nalone\n")
    (fake_slurm / "bin" / "sbatch").write_text("#!/bin/sh\necho welcome to the cluster\n")
    with pytest.raises(WorkFailed, match="generate: wanted the number of a job from sbatch; it said 'welcome to the"):
        submit(open_here(fake_slurm))
    assert "job" not in call(fake_slurm, "status", "run").stdout


def test_nothing_is_submitted_where_slurm_does_not_say_what_is_there(fake_slurm: Path) -> None:
    submit(open_here(fake_slurm))
    before = (fake_slurm / "calls").read_text()
    (fake_slurm / "live").unlink()
    with pytest.raises(WorkFailed, match=r"Slurm refused squeue \(cat: live: No such file"):
        submit(open_here(fake_slurm))
    assert (fake_slurm / "calls").read_text() == before
    assert "Slurm refused squeue" in call(fake_slurm, "status", "run").stdout


@pytest.fixture(scope="module")
def slurm() -> Iterator[Path]:
    if reason := slurm_cluster.missing():
        pytest.skip(reason)
    with slurm_cluster.running() as folder:
        yield folder


NUM_STEPS = 200


def slow_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose teacher can be slowed down."""
    config = with_slurm(folder, time="9", stop_seconds=20, parts=3, nodes=2)
    sections = yaml.safe_load(config.read_text())
    monkeypatch.setenv(slow_teacher.FILE, sections["generate"]["teacher"])
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    sections["generate"] |= {"teacher": "tests.support.slow_teacher:slow", "n": 12 * 16}
    sections["train"] |= {
        "recipe": "lagrangian",
        "trainer": {"num_steps": NUM_STEPS, "batch_size": 8, "log_every": 2},
    }
    config.write_text(yaml.safe_dump(sections))
    return config


def weights(run: Path) -> dict[str, bytes]:
    newest = checkpoint.find(run / "train")
    return {name: (newest / name).read_bytes() for name in (checkpoint.EMA, checkpoint.OPTIMIZER)}


def num_steps(run: Path) -> int:
    log = run / "train" / "log.jsonl"
    return len(log.read_text().splitlines()) * 2 if log.exists() else 0


def job_of(run: Path, stage: str) -> str:
    return str(json.loads((run / "slurm" / "jobs.json").read_text())[stage])


def squeue(job: str, columns: str) -> list[str]:
    """Those columns of each task of `job` that waits or runs."""
    return said("squeue", "--noheader", f"--format={columns}", f"--jobs={job}").splitlines()


def lose_a_part_and_a_node(run: Path, slurm: Path) -> str:
    """Preempt the first part and kill the node of the second one while all three are at work; the node's name."""
    job = job_of(run, "generate")
    wait_until(lambda: len(list((run / "data").glob("shard-*.json"))) > 2, "the first shards")
    wait_until(lambda: squeue(job, "%T") == ["RUNNING"] * 3, "the parts to be at work")
    nodes = dict(line.split() for line in squeue(job, "%K %N"))
    said("scontrol", "requeue", f"{job}_1")
    slurm_cluster.kill_node(slurm, nodes["2"])
    return nodes["2"]


def let_time_run_out(run: Path) -> None:
    """Give the training, once it has begun, a minute at most, and as long as it needs when it is requeued."""
    job = job_of(run, "train")
    log = run / "slurm" / f"train-{job}.log"
    wait_until(lambda: num_steps(run) > 10, "the training")
    minutes, seconds = map(int, squeue(job, "%M")[0].split(":"))
    said("scontrol", "update", f"jobid={job}", f"timelimit={minutes + (1 if seconds < 38 else 2)}")
    wait_until(lambda: "stopped after step" in log.read_text(), "the training to be stopped")
    wait_until(lambda: squeue(job, "%T") == ["PENDING"], "the training to be requeued")
    said("scontrol", "update", f"jobid={job}", "timelimit=9")
    wait_until(lambda: "resuming from" in log.read_text(), "the training to resume")


@pytest.mark.cluster
def test_a_run_that_loses_a_part_a_node_and_its_time_ends_with_the_undisturbed_data_and_weights(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, place, calm = slow_config(tmp_path, monkeypatch), tmp_path / "run", tmp_path / "calm"
    run_stages(open_run(str(config), str(calm), [], None), on_cluster=False, address=None, only="generate")
    on_ranks(2, ["run", str(config), "--out", str(calm), "--only", "train"])

    monkeypatch.setenv(slow_teacher.PAUSE, "0.2")
    call(tmp_path, "run", config, "--out", place, "--submit", "slurm")
    lost = lose_a_part_and_a_node(place, slurm)
    assert "running" in call(tmp_path, "status", place).stdout
    wait_until(lambda: (place / "data" / "manifest.parquet").exists(), "the data set")
    slurm_cluster.start_node(lost)
    let_time_run_out(place)
    wait_until(lambda: (place / "report" / "metrics.json").exists(), "the report")

    digests = [read_manifest(open_store(str(folder / "data"))).sha256 for folder in (calm, place)]
    assert digests[0] == digests[1]
    assert checkpoint.read_info(checkpoint.find(place / "train")).step == NUM_STEPS
    assert weights(place) == weights(calm)
    assert read_report(place / "report").rows
    assert call(tmp_path, "status", place).stdout.count("; complete") == 3
