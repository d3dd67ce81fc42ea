"""The command line as a user meets it, from noise to the page; what is promised of processes, in real ones."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.support.command import SCRIPT, assert_one_line, call, run
from tests.support.problems import save_tiny_teacher


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the three stages of the quickstart have run, made small."""
    folder = tmp_path_factory.mktemp("quick")
    run(folder, "generate", "--config", "quickstart", "--n", 512, "--workers", 2)
    call(folder, "train", "--config", "quickstart", "--steps", "60", "--batch-size", "32")
    short = ("--n", 256, "--set", "teacher_solver.rtol=1e-3", "--set", "num_trajectories=64")
    call(folder, "evaluate", "--config", "quickstart", *short, "--set", "baselines=euler,midpoint")
    return folder


def test_the_three_stages_end_in_a_scored_generator(quick: Path) -> None:
    out = quick / "runs" / "quickstart"
    rows = json.loads((out / "metrics.json").read_text())["rows"]
    distance = {f"{row['model']}, {row['sampler']}": row["scores"]["fd-digits"]["mean"] for row in rows}
    assert next(iter(distance)) == "teacher, dopri5 rtol 0.001 atol 1e-5"
    assert {"teacher, euler 8", "teacher, midpoint 4", "student, 1 step", "student, 8 steps"} < set(distance)
    # Even sixty steps undo most of the blur of the teacher's single Euler step, which is where the student began.
    assert distance["student, 1 step"] < distance["teacher, euler 1"] / 3
    assert "Fréchet" in (out / "report.html").read_text()
    for picture in ("grid.png", "grid-all.png", "strips.png", "train/samples.png"):
        assert Image.open(out / picture).width > 300
    said = call(
        quick, "compare", "runs/quickstart", "runs/quickstart", "--out", "both.html", "--csv", "both.csv"
    ).stdout
    assert "8 steps" in said
    assert "Fréchet" in (quick / "both.html").read_text()
    assert (quick / "both.csv").read_text().startswith("run,model,group,sampler,evaluations,fd-digits,fd-digits_sd,")
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["generation"]["num_records"], metrics["generation"]["solver"]) == (512, "rk4 9")
    assert 0 < metrics["training_work"]["hours"] < 1
    assert 0 < metrics["evaluation_work"]["hours"] < 1
    for text in ((out / "report.md").read_text(), (out / "train" / "MODEL_CARD.md").read_text()):
        assert "512 records of 8 states, rk4 9, 36 evaluations each" in text


def test_every_stage_says_so_when_it_is_complete(quick: Path) -> None:
    again = call(quick, "generate", "--config", "quickstart", "--n", 512)
    assert "nothing to do" in again.stdout
    flags = ("--steps", "60", "--batch-size", "32")
    assert "nothing to do" in call(quick, "train", "--config", "quickstart", *flags).stdout


def test_the_resolved_config_repeats_the_command(quick: Path) -> None:
    config = quick / "runs" / "quickstart" / "data" / "config.yaml"
    assert "nothing to do" in call(quick, "generate", "--config", config).stdout


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(quick: Path, tmp_path: Path) -> None:
    flags = ("--out", tmp_path / "run", "--steps", "100000", "--set", "trainer.checkpoint_every=1")
    command = [str(SCRIPT), "train", "--config", "quickstart", *map(str, flags)]
    process = subprocess.Popen(
        command,
        cwd=quick,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not any((tmp_path / "run").glob("checkpoints/step-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.fullmatch(r"error: stopped after step \d+, which is saved; run the same command to resume\n", said)


@pytest.mark.parametrize(
    ("number", "executor"), [(signal.SIGTERM, "inline"), (signal.SIGINT, "ray"), (signal.SIGTERM, "ray")]
)
def test_generate_stops_within_a_shard_and_goes_on_later(tmp_path: Path, number: signal.Signals, executor: str) -> None:
    data = tmp_path / "data"
    cheap = ("--n", 1024, "--states", 2, "--steps", 3, "--set", "shard_size=64")
    flags = ("--config", "quickstart", *cheap, "--out", data)
    process = subprocess.Popen(
        [str(SCRIPT), "generate", *map(str, flags), "--executor", executor],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not any(data.glob("shard-*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    said, complained = process.communicate(timeout=60)
    assert process.returncode == 130, complained
    assert "stopping when the shards in flight are committed" in said
    assert complained.strip() == "error: interrupted; run the same command to resume"
    left = {path.name for path in data.iterdir()} - {"plan.json", "config.yaml", "manifest.parquet"}
    shards = {name.replace(".tar", ".json") for name in left}
    assert left == shards | {name.replace(".json", ".tar") for name in shards}
    assert 1 <= len(shards) < 16
    before = {path: path.stat().st_ino for path in data.glob("shard-*")}
    assert "digest " in call(tmp_path, "generate", *flags, "--executor", "inline").stdout
    assert {path: path.stat().st_ino for path in before} == before


def test_a_second_driver_is_refused(tmp_path: Path) -> None:
    flags = ("--config", "quickstart", "--n", 100_000, "--out", tmp_path / "data", "--executor", "inline")
    first = subprocess.Popen([str(SCRIPT), "generate", *map(str, flags)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "data" / "plan.json").exists():
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert_one_line(call(tmp_path, "generate", *flags, code=2), "another driver is at work there", str(first.pid))
    finally:
        first.kill()
        first.wait()


def test_verify_names_what_is_wrong_and_repair_lets_generate_fill_it(tmp_path: Path) -> None:
    flags = ("--config", "quickstart", "--n", 256, "--set", "shard_size=64", "--out", "data", "--executor", "inline")
    digest = call(tmp_path, "generate", *flags).stdout.splitlines()[-1]
    assert digest.removeprefix("digest ") in call(tmp_path, "verify", "data").stdout
    shard = tmp_path / "data" / "shard-000002.tar"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    found = run(tmp_path, "verify", "data", code=1)
    assert "shard-000002.tar: its bytes are not those that were committed" in found.stdout
    assert_one_line(found, "1 fault", "3 of 4 shards are whole", "--repair")
    assert_one_line(
        call(tmp_path, "verify", "data", "--repair", code=1), "1 bad shard removed: run traflow-pipeline generate"
    )
    assert not shard.exists()
    assert call(tmp_path, "generate", *flags).stdout.splitlines()[-1] == digest
    call(tmp_path, "verify", "data", "--recheck", 0)
    shard.write_bytes(b"?")
    found = call(tmp_path, "verify", "data", "--teacher", "moved:away", code=1)
    assert "shard-000002.tar: 1 bytes, the marker says" in found.stdout
    assert "no batch was integrated again: " in found.stdout


def test_inspect_shows_a_set_and_draws_it(quick: Path, tmp_path: Path) -> None:
    said = call(quick, "inspect", "runs/quickstart/data", "--out", tmp_path / "a" / "few.png", "--n", 4).stdout
    for part in ("512 of 512", "straightness", "rk4 9", "digest"):
        assert part in said
    found = call(quick, "inspect", "runs/quickstart/data", "--out", "runs", code=2)
    assert_one_line(found, "runs: wanted the path of a picture")
    width, height = Image.open(tmp_path / "a" / "few.png").size
    assert width > 300
    assert height == 4 * 42 - 2


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    said = call(tmp_path, "generate", "--config", "quickstart", "--dry-run").stdout
    for part in ("8,192 trajectories", "36 evaluations per sample", "samples/s", "hours", "MB to be stored"):
        assert part in said
    assert list(tmp_path.iterdir()) == []


def test_probe_recommends_a_solver_that_generate_takes(tmp_path: Path) -> None:
    save_tiny_teacher(tmp_path / "mine.safetensors")
    flags = ("--teacher", "mine.safetensors", "--n", 4, "--max-error", 0.05)
    said = call(tmp_path, "probe", *flags).stdout
    recommended = next(line for line in said.splitlines() if line.startswith("fewest evaluations")).partition(": ")[2]
    sizes = ("--states", 0, "--set", "shard_size=4", "--set", "batch_size=4", "--set", "block_size=4")
    out = ("--out", "data", "--n", 4, "--executor", "inline")
    call(tmp_path, "generate", "--teacher", "mine.safetensors", *recommended.split(), *sizes, *out)


def test_sample_draws_a_grid(quick: Path, tmp_path: Path) -> None:
    for steps in (1, 4):
        call(quick, "sample", "runs/quickstart/train", "--steps", steps, "--n", 9, "--out", tmp_path / f"{steps}.png")
        assert Image.open(tmp_path / f"{steps}.png").size[1] > 100


def test_a_shard_that_fails_its_checksum_stops_the_training(quick: Path, tmp_path: Path) -> None:
    shard = quick / "runs" / "quickstart" / "data" / "shard-000000.tar"
    whole = shard.read_bytes()
    try:
        shard.write_bytes(whole[:700] + b"?" + whole[701:])
        flags = ("--out", tmp_path / "run", "--steps", "60")
        found = call(quick, "train", "--config", "quickstart", *flags, code=1)
    finally:
        shard.write_bytes(whole)
    assert_one_line(found, "shard-000000.tar", "not those that were committed", "verify")


def test_another_plan_in_the_folder_is_refused(quick: Path) -> None:
    found = call(quick, "generate", "--config", "quickstart", "--n", 512, "--seed", 1, code=2)
    assert_one_line(found, "runs/quickstart/data holds another plan", "seed: 0 there, 1 asked")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["generate", "--teacher", "2fr", "--n", "4", "--out", "d"], ["no teacher '2fr'", "digits"]),
        (["generate", "--teacher", "digits", "--n", "4q", "--out", "d"], ["'4q'", "4096, 16k or 1M"]),
        (["generate", "--teacher", "digits", "--n", "4"], ["'out' is missing"]),
        (["generate", "--config", "quickstart", "--set", "statse=1"], ["unknown key 'statse'", "states"]),
        (["generate", "--config", "quickstart", "--set", "statse"], ["wanted key=value"]),
        (["generate", "--config", "quickstart", "--set", "seed=2020-13-45"], ["the value is not YAML"]),
        (["generate", "--config", "quickstart", "--set", "solver=rk4"], ["give it num_steps"]),
        (["generate", "--config", "quickstart", "--executor", "inline", "--workers", "2"], ["no workers"]),
        (["train", "--config", "quickstart", "--set", "trainer.betas=[1.5, 2]"], ["trainer.betas"]),
        (["generate", "--config", "slowstart"], ["no config 'slowstart'", "quickstart"]),
        (["generate", "--config", "quickstart", "--solver", "rk45"], ["solver.name", "dopri5"]),
        (["generate", "--config", "quickstart", "--states", "20"], ["at least 21 steps (--steps"]),
        (["train", "--config", "quickstart", "--recipe", "trafow"], ["no recipe 'trafow'", "traflow", "anchored"]),
        (["train", "--config", "quickstart"], ["there is no such folder", "generate"]),
        (["evaluate", "--config", "quickstart"], ["wanted a checkpoint", "train"]),
        (["verify", "nowhere", "--repair"], ["nowhere: wanted a data set", "there is no such folder"]),
        (["inspect", "nowhere"], ["nowhere: wanted a data set", "there is no such folder"]),
        (["probe", "--teacher", "2fr"], ["no teacher '2fr'"]),
        (["generate", "--config", "quickstart", "--out", "ftps3://x/y"], ["Protocol not known: ftps3"]),
        (["generate", "--config", "quickstart", "--gpus-per-worker", "1.5"], ["a part of one GPU or whole ones"]),
        (["sample", "nowhere"], ["nowhere: wanted a checkpoint"]),
        (["generate", "--no-such-flag"], ["--no-such-flag"]),
        (["distil"], ["distil"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], parts: list[str]) -> None:
    assert_one_line(call(tmp_path, *arguments, code=2), *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["sample", "status", "run", "evaluate --out report"])
def test_what_the_system_refuses_is_one_line(tmp_path: Path, command: str) -> None:
    found = call(tmp_path, *command.split(), "a" * 300, code=1)
    assert_one_line(found, "File name too long")


def test_an_address_that_is_none_is_said(tmp_path: Path) -> None:
    found = run(tmp_path, "generate", "--config", "quickstart", "--address", "localhost", code=2)
    assert_one_line(found, "wanted host:port or auto")


def test_a_file_where_a_folder_is_wanted_is_said(quick: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for stage in ("generate", "train", "evaluate"):
        assert_one_line(call(quick, stage, "--config", "quickstart", "--out", tmp_path / "file", code=2), "folder")


def test_a_teacher_of_the_users_own_file_goes_the_whole_way(tmp_path: Path) -> None:
    save_tiny_teacher(tmp_path / "mine.safetensors", num_classes=3)
    flags = ("--executor", "inline", "--states", 2, "--set", "shard_size=64", "--set", "batch_size=64")
    call(tmp_path, "generate", "--teacher", "mine.safetensors", "--n", 64, "--out", "data", *flags)
    call(tmp_path, "train", "--data", "data", "--out", "run", "--steps", "2")
    call(tmp_path, "sample", "run", "--n", 4, "--out", "mine.png")
    assert (tmp_path / "mine.png").exists()


MY_FLOW = """
import torch
from pipeline.teachers.teacher import Teacher, state_sha256

def load(device):
    mean = torch.full((1, 4, 4), 0.5, device=device)
    def velocity(x, t, label):
        return (x - mean) / t.clamp(min=1e-3)[:, None, None, None]
    return Teacher("mine", state_sha256({"mean": mean}), velocity, (1, 4, 4), t_end=0.01)
"""


def test_a_factory_in_the_users_folder_is_found_by_ray_and_by_the_trainer(tmp_path: Path) -> None:
    (tmp_path / "my_flow.py").write_text(MY_FLOW)
    sizes = ("--set", "shard_size=32", "--set", "batch_size=32", "--set", "block_size=32")
    run(tmp_path, "generate", "--teacher", "my_flow:load", "--n", 64, "--states", 2, "--out", "data", *sizes)
    steps = ("--steps", "2")
    found = call(tmp_path, "train", "--data", "data", "--out", "run", *steps, code=2)
    assert_one_line(found, "has no network to start from", "give 'network'")
    network = "network={resolution: 4, image_channels: 1, channels: 8, channel_mult: [1]}"
    run(tmp_path, "train", "--data", "data", "--out", "run", *steps, "--set", network)
    call(tmp_path, "sample", "run", "--n", 4)


def test_help_and_the_list_of_teachers_answer(tmp_path: Path) -> None:
    listed = run(tmp_path, "--help").stdout
    for command in (
        *("generate", "verify", "inspect", "probe", "train", "evaluate", "sample", "teachers", "average", "export"),
        *("reference", "compare"),
    ):
        assert command in listed
        assert "Usage" in call(tmp_path, command, "--help").stdout
    assert "digits" in call(tmp_path, "teachers").stdout


def test_the_version_is_one_line(tmp_path: Path) -> None:
    said = run(tmp_path, "--version").stdout
    assert re.fullmatch(r"traflow-pipeline \S+, Python 3\.\d+\.\d+, torch \S+\n", said)


def test_help_imports_nothing_heavy() -> None:
    heavy = "('torch', 'ray', 'pydantic', 'numpy')"
    code = f"import sys, traflow_pipeline.cli; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# Torch takes seconds to import: a typing error is answered before.
AT_ONCE = {
    "train --config quickstart --set trainer.lr=abc": "trainer.lr: wanted a number, got 'abc'",
    "train --config quickstart --set trainer.lrr=1": "did you mean 'trainer.lr'?",
    "train --config quikstart": "did you mean 'quickstart'?",
    "generate --config quickstart --set statse=1": "did you mean 'states'?",
    "generate --config quickstart --solver rk45": "solver.name: wanted 'dopri5'",
    "generate --teecher digits": "--teecher; did you mean '--teacher'?",
    "train --learning-rate 1": "--learning-rate; did you mean '--lr'?",
    "train --weight-decay 1": "--weight-decay; did you mean '--set trainer.weight_decay=...'?",
    "sample run --num-samples 4": "--num-samples; did you mean '--n'?",
    "evaluate --config quickstart --set stesp=1": "did you mean 'steps'?",
    "evaluate --n 4q": "wanted a count such as 4096",
    "train --config quickstart --steps 5q": "trainer.num_steps: wanted a count such as 4096, 16k or 1M, got '5q'",
    "train --config quickstart --out=": "out: wanted a path that is not empty",
    "sample run --out=": "--out: wanted a path that is not empty",
    "sample run --n 4q": "--n: wanted a whole number of 1 or more, got 4q",
    "run quickstart --set train.trainer.lrr=1": "did you mean 'train.trainer.lr'?",
    "run quickstart --set evaluate.stesp=1": "did you mean 'evaluate.steps'?",
    "run quikstart": "did you mean 'quickstart'?",
    "run quickstart --set trian.seed=1": "evaluate.KEY=...; did you mean 'train'?",
    "genrate": "Did you mean 'generate'?",
    "teachers chek": "Did you mean 'check'?",
}
WITHOUT_TORCH = """
import sys
from traflow_pipeline.cli import main
for line in sys.stdin:
    sys.argv = ["traflow-pipeline", *line.split()]
    try:
        main()
    except SystemExit as ended:
        assert ended.code == 2
    assert not {"torch", "ray"} & set(sys.modules), line
"""


def test_mistakes_on_the_command_line_are_answered_at_once(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], input="\n".join(AT_ONCE), cwd=tmp_path, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    for line, part in zip(found.stderr.splitlines(), AT_ONCE.values(), strict=True):
        assert line.startswith("error: ")
        assert part in line


@pytest.mark.parametrize("flag", ["2fr", "digit", "digts"])
def test_a_misspelt_teacher_is_answered_with_the_one_that_was_meant(tmp_path: Path, flag: str) -> None:
    found = call(tmp_path, "probe", "--teacher", flag, code=2)
    assert_one_line(found, f"no teacher '{flag}'")
    assert ("did you mean 'digits'" in found.stderr) == flag.startswith("dig")


def test_what_to_do_next_can_be_pasted(tmp_path: Path) -> None:
    save_tiny_teacher(tmp_path / "mine.safetensors")
    sizes = ("--set", "shard_size=8", "--set", "batch_size=8", "--set", "block_size=8", "--executor", "inline")
    out = ("--out", "my 'data' :100:", "--solver", "euler", "--steps", 2, "--states", 1)
    said = call(tmp_path, "generate", "--teacher", "mine.safetensors", "--n", 8, *out, *sizes).stdout
    (line,) = [line for line in said.splitlines() if line.startswith("next: ")]
    assert "my 'data' :100:" in shlex.split(line)
    assert "my 'data' :100:: 8 trajectories" in said


def test_a_device_that_is_not_here_is_answered_with_those_that_are(tmp_path: Path) -> None:
    found = call(tmp_path, "sample", "--teacher", "digits", "--device", "cuda:99", code=2)
    devices = "cpu, cuda" if torch.cuda.is_available() else "cpu"
    assert_one_line(found, f"device 'cuda:99': wanted auto or one that torch has here: {devices}")


def test_secrets_and_escapes_in_what_was_asked_are_not_echoed(tmp_path: Path) -> None:
    found = call(tmp_path, "inspect", "nothing://x/\x1b[2J?secret=abc", code=2)
    assert_one_line(found, "nothing://x/\\x1b[2J?...")
    assert "abc" not in found.stderr


@pytest.mark.parametrize(("given", "kept"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
@pytest.mark.parametrize(
    "code", ["import traflow_pipeline as tp; tp.BadInput", "from traflow_pipeline.__main__ import main; main()"]
)
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(given: str | None, kept: str, code: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    says = "atexit.register(lambda: print(os.environ['OMP_WAIT_POLICY']))"
    program = f"import atexit, os, sys; sys.argv = ['x', '--version']; {says}; {code}"
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert found.stdout.splitlines()[-1] == kept
