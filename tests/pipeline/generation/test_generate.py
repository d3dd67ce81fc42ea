"""Real Ray, real processes: whoever does the work, the bytes are the same."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from torch import Tensor

from pipeline.common.errors import BadInput, WorkFailed
from pipeline.common.ray_cluster import count_workers, worker_slots
from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.generation import workers
from pipeline.generation.backlog import Backlog, Failure
from pipeline.generation.generate import generate, make_plan
from pipeline.generation.workers import Job
from pipeline.storage.lease import LEASE, Holder
from pipeline.storage.store import Folder, aside_of
from pipeline.teachers.teacher import Teacher
from tests.support.fake_work import marker as marker_of
from tests.support.plans import config
from tests.support.problems import SHAPE, GaussianFlow, folder_of, save_tiny_teacher, shard_bytes

FLOW = GaussianFlow()


def dies_once(device: torch.device) -> Teacher:
    """Kills the process that begins the first integration, as a preempted machine would."""
    marker = Path(os.environ["TRAFLOW_TEST_MARKER"])

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        if t[0] == 1 and not marker.exists():  # when the teacher is loaded it is asked between the ends
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return FLOW.velocity(x, t)

    return Teacher("gaussian", "0" * 64, velocity, SHAPE)


def fails_for_one_shard(device: torch.device) -> Teacher:
    """Not finite for the noise of records 8 to 11 of seed 0."""
    from pipeline.flow.noise import draw_noise

    bad = torch.from_numpy(draw_noise(0, [9], SHAPE)).half().float()

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return FLOW.velocity(x, t) + torch.where((x[-1:] == bad).all(), torch.nan, 0.0)

    return Teacher("gaussian", "0" * 64, velocity, SHAPE)


def is_sick_in_one_process(device: torch.device) -> Teacher:
    """In the first process that asks, its device fails for good after two shards' starts."""
    marker, asked = Path(os.environ["TRAFLOW_TEST_MARKER"]), [0]

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        if t[0] == 1:
            asked[0] += 1
            if not marker.exists():
                marker.write_text(str(os.getpid()))
        if asked[0] and marker.read_text() == str(os.getpid()):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return FLOW.velocity(x, t)

    return Teacher("gaussian", "0" * 64, velocity, SHAPE)


def hangs_in_one_process(device: torch.device) -> Teacher:
    """The first process that integrates is at it for so long that the test would fail."""
    marker = Path(os.environ["TRAFLOW_TEST_MARKER"])

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        if t[0] == 1 and not marker.exists():
            marker.touch()
            time.sleep(600)
        return FLOW.velocity(x, t)

    return Teacher("gaussian", "0" * 64, velocity, SHAPE)


def fails_to_load_in_one_process(device: torch.device) -> Teacher:
    """As on a machine without the teacher's file: in the first worker that asks, not in the driver."""
    marker = Path(os.environ["TRAFLOW_TEST_MARKER"])
    if ray.is_initialized() and not marker.exists():
        marker.write_text(str(os.getpid()))
    if marker.exists() and marker.read_text() == str(os.getpid()):
        raise BadInput("no teacher.pkl on this machine")
    return FLOW.teacher()


def waits_for_a_loss(device: torch.device) -> Teacher:
    """Does not go on beyond two shards before a machine was lost."""
    data, lost = Path(os.environ["TRAFLOW_TEST_DATA"]), Path(os.environ["TRAFLOW_TEST_MARKER"])

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        while len(list(data.glob("shard-*.json"))) >= 2 and not lost.exists():
            time.sleep(0.01)
        return FLOW.velocity(x, t)

    return Teacher("gaussian", "0" * 64, velocity, SHAPE)


def always_dies_for_one_shard(device: torch.device) -> Teacher:
    """Killed by the noise of records 8 to 11 of seed 0, as the kernel kills who takes too much memory."""
    from pipeline.flow.noise import draw_noise

    bad = torch.from_numpy(draw_noise(0, [9], SHAPE)).half().float()

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        if (x[-1:] == bad).all():
            os.kill(os.getpid(), signal.SIGKILL)
        return FLOW.velocity(x, t)

    return Teacher("gaussian", "0" * 64, velocity, SHAPE)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return generate(config(tmp_path_factory.mktemp("undisturbed") / "data"))


@pytest.fixture(scope="module")
def marker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file by which teachers here remember what happened; workers are told of it by environment."""
    path = tmp_path_factory.mktemp("marker") / "marker"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TRAFLOW_TEST_MARKER", str(path))
        yield path


@pytest.fixture(scope="module")
def address(marker: Path) -> Iterator[str]:
    """A Ray cluster with places for two workers, started once for all tests here."""
    machine = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield machine.address
    machine.shutdown()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("num_workers", [1, 3], ids=["a worker", "more workers than places, which take turns"])
def test_ray_makes_the_bytes_that_this_process_makes(
    tmp_path: Path, undisturbed: Manifest, address: str, num_workers: int
) -> None:
    on_ray = generate(config(tmp_path / "data", executor="ray", workers=num_workers, address=address))
    assert on_ray.sha256 == undisturbed.sha256
    assert shard_bytes(on_ray) == shard_bytes(undisturbed)


@pytest.mark.parametrize("at_once", [1, 2], ids=["with a shard", "with two, as on a GPU"])
def test_a_worker_that_dies_is_replaced_and_leaves_no_trace(
    tmp_path: Path, undisturbed: Manifest, address: str, marker: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(workers, "SHARDS_OF_CPU", at_once)
    marker.unlink(missing_ok=True)
    source = "tests.pipeline.generation.test_generate:dies_once"
    disturbed = generate(config(tmp_path / "ray", executor="ray", workers=2, teacher=source, address=address))
    assert marker.exists()
    assert shard_bytes(disturbed) == shard_bytes(undisturbed)


@pytest.mark.parametrize(
    ("teacher", "error"),
    [
        ("is_sick_in_one_process", "CUDA error: an illegal memory access"),
        ("fails_to_load_in_one_process", "no teacher.pkl on this machine"),
    ],
)
def test_a_sick_worker_is_retired_and_spoils_nothing(
    tmp_path: Path,
    undisturbed: Manifest,
    address: str,
    marker: Path,
    capsys: pytest.CaptureFixture[str],
    teacher: str,
    error: str,
) -> None:
    marker.unlink(missing_ok=True)
    source = f"tests.pipeline.generation.test_generate:{teacher}"
    disturbed = generate(config(tmp_path / "ray", executor="ray", workers=2, teacher=source, address=address))
    assert shard_bytes(disturbed) == shard_bytes(undisturbed)
    said = " ".join(capsys.readouterr().out.split())
    assert f"a worker is retired on {socket.gethostname()}: " in said
    assert error in said


def test_a_shard_of_a_worker_that_hangs_is_made_by_an_idle_one(
    tmp_path: Path, undisturbed: Manifest, address: str, marker: Path
) -> None:
    marker.unlink(missing_ok=True)
    source = "tests.pipeline.generation.test_generate:hangs_in_one_process"
    disturbed = generate(config(tmp_path / "ray", executor="ray", workers=2, teacher=source, address=address))
    assert marker.exists()
    assert shard_bytes(disturbed) == shard_bytes(undisturbed)


@pytest.mark.cluster
def test_a_machine_that_is_lost_in_the_middle_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Manifest
) -> None:
    data, lost = tmp_path / "data", tmp_path / "lost"
    monkeypatch.setenv("TRAFLOW_TEST_DATA", str(data))
    monkeypatch.setenv("TRAFLOW_TEST_MARKER", str(lost))
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        going = machines.add_node(num_cpus=1)
        machines.add_node(num_cpus=1)
        machines.wait_for_nodes()

        def lose_one() -> None:
            while len(list(data.glob("shard-*.json"))) < 2:
                time.sleep(0.01)
            machines.remove_node(going, allow_graceful=False)
            lost.touch()

        watcher = threading.Thread(target=lose_one, daemon=True)
        watcher.start()
        source = "tests.pipeline.generation.test_generate:waits_for_a_loss"
        manifest = generate(config(data, executor="ray", teacher=source, address=machines.address))
        watcher.join(60)
    finally:
        machines.shutdown()  # type: ignore[no-untyped-call]
    assert manifest.sha256 == undisturbed.sha256
    assert shard_bytes(manifest) == shard_bytes(undisturbed)


def test_a_shard_that_kills_every_worker_is_given_up_and_the_others_are_made(tmp_path: Path, address: str) -> None:
    source = "tests.pipeline.generation.test_generate:always_dies_for_one_shard"
    with pytest.raises(WorkFailed, match=r"1 of 5 shards failed: shard 000002 .* its worker died: .*tried 3 times"):
        generate(config(tmp_path / "data", executor="ray", workers=1, teacher=source, address=address))
    assert len(list((tmp_path / "data").glob("shard-*.json"))) == 4


@pytest.mark.cluster
def test_a_part_of_a_gpu_makes_more_workers_and_a_gpu_that_torch_cannot_see_is_said(tmp_path: Path) -> None:
    machine = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 1, "include_dashboard": False})
    try:
        address = machine.address
        with pytest.raises(WorkFailed, match=r"Ray gave a GPU on .*, but torch .* sees none there"):
            generate(config(tmp_path / "gpu", executor="ray", gpus_per_worker=0.5, address=address))
        on_cpus = generate(config(tmp_path / "cpu", executor="ray", gpus_per_worker=0, workers=1, address=address))
        assert on_cpus.num_records == 20
        assert count_workers(None, 0.25, address) == 4
    finally:
        machine.shutdown()  # type: ignore[no-untyped-call]


def test_there_are_as_many_workers_as_slots() -> None:
    assert worker_slots({"CPU": 8, "GPU": 2}, None, None) == (2, 1)
    assert worker_slots({"CPU": 8, "GPU": 2}, None, 0.25) == (8, 0.25)
    assert worker_slots({"CPU": 8, "GPU": 3}, None, 2) == (1, 2)
    assert worker_slots({"CPU": 16, "GPU": 4}, None, 0.6) == (4, 0.6)
    assert worker_slots({"CPU": 4, "GPU": 4}, None, 0.25) == (4, 0.25)
    assert worker_slots({"CPU": 8, "GPU": 2}, None, 0) == (8, 0)
    assert worker_slots({"CPU": 8}, 3, None) == (3, 0)
    assert worker_slots({}, 3, None) == (3, 0)
    with pytest.raises(BadInput, match="0 GPUs and 0 CPUs, no room for a worker"):
        worker_slots({}, None, None)


def test_a_stop_does_not_wait_for_workers_that_have_no_place_yet(tmp_path: Path, address: str) -> None:
    places = 2
    asked = config(tmp_path / "data", n=4 * 8 * places, executor="ray")
    plan, stop = make_plan(asked, FLOW.teacher()), threading.Event()
    job = Job(plan, asked.teacher, asked.out)
    made = 0
    for _ in workers.run_on_ray(job, Backlog(plan.shards(asked.n), stop), lambda _: None, 4 * places, None, address):
        made += 1
        stop.set()
    assert 1 <= made <= 1 + places


def test_the_bar_counts_what_is_in_work_and_nothing_twice(tmp_path: Path) -> None:
    plan = make_plan(config(tmp_path / "data", n=20), FLOW.teacher())
    first, second, *_ = plan.shards(20)
    told: list[int] = []
    progress = workers.Progress(told.append)
    progress.on_answer({0: 2})
    progress.on_answer({1: 2})
    progress.on_answer({0: 0})  # its worker was lost, and another one began it again
    progress.on_answer({0: 2})
    assert told == [2, 2]
    progress.on_result(marker_of(plan, first))
    progress.on_result(Failure(second, "lost"))
    assert told == [2, 2, 2], "the shard that was made has four records"
    progress.on_answer({1: 4})
    assert told == [2, 2, 2, 2]


def test_a_worker_tells_how_far_a_shard_is(tmp_path: Path) -> None:
    asked = config(tmp_path / "data", n=8)
    plan = make_plan(asked, FLOW.teacher())
    worker = workers.Worker(Job(plan, asked.teacher, asked.out), wants_gpu=False)
    seen: list[dict[int, int]] = []
    worker.make(plan.shards(8)[0], lambda _: seen.append(worker.integrated()))
    assert seen == [{0: 2}, {0: 4}]
    assert worker.integrated() == {}


def test_this_process_needs_no_ray(tmp_path: Path) -> None:
    code = (
        "import sys; from tests.support.killing import config; from pipeline.generation.generate import generate;"
        f"generate(config({str(tmp_path / 'data')!r}, 8)); assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_address_where_no_cluster_answers_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no Ray cluster at 127\.0\.0\.1:1 \(.*refused\)"):
        generate(config(tmp_path / "data", executor="ray", address="127.0.0.1:1"))


def test_ray_that_does_not_start_is_said_on_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", init)
    with pytest.raises(WorkFailed, match=r"Ray did not start on this machine \(.*timed out .*\): is it busy\?"):
        generate(config(tmp_path / "data", executor="ray"))


def test_the_same_command_again_touches_nothing_and_needs_no_teacher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def identities() -> dict[Path, tuple[int, int]]:
        return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (tmp_path / "data").glob("shard-*")}

    first = generate(config(tmp_path / "data"))
    before = identities()
    monkeypatch.delattr("tests.support.problems.gaussian")
    second = generate(config(tmp_path / "data"))
    assert identities() == before
    assert second.sha256 == first.sha256
    assert "nothing to do" in capsys.readouterr().out


def test_a_teacher_with_other_weights_at_the_same_path_is_noticed_even_then(tmp_path: Path) -> None:
    teacher = save_tiny_teacher(tmp_path / "mine.safetensors")
    generate(config(tmp_path / "data", teacher=str(teacher), n=4))
    save_tiny_teacher(teacher, seed=1)
    with pytest.raises(BadInput, match=r"holds another plan \(teacher_sha256"):
        generate(config(tmp_path / "data", teacher=str(teacher), n=4))


def test_a_set_grows_into_the_set_that_was_asked_at_once(tmp_path: Path) -> None:
    generate(config(tmp_path / "grown", n=10))
    grown = generate(config(tmp_path / "grown", n=20))
    assert shard_bytes(grown) == shard_bytes(generate(config(tmp_path / "whole", n=20)))
    with pytest.raises(BadInput, match="holds records up to 20, 10 were asked"):
        generate(config(tmp_path / "grown", n=10))


def test_a_set_with_gaps_does_not_shrink_either(tmp_path: Path) -> None:
    generate(config(tmp_path / "data"))
    for number in (1, 2, 3):
        (tmp_path / "data" / f"shard-00000{number}.json").unlink()
    with pytest.raises(BadInput, match="holds records up to 20, 8 were asked"):
        generate(config(tmp_path / "data", n=8))


def test_a_driver_that_lost_its_place_leaves_the_manifest_to_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Folder.write

    def taken_over(self: Folder, name: str, payload: bytes) -> None:
        write(self, name, payload)
        if name == "shard-000001.tar":
            write(
                self,
                LEASE,
                Holder.model_validate_json(self.read(LEASE))
                .model_copy(update={"token": "t"})
                .model_dump_json()
                .encode(),
            )
            write(self, "manifest.parquet", b"the successor's")

    monkeypatch.setattr(Folder, "write", taken_over)
    with pytest.raises(WorkFailed, match="another took over"):
        generate(config(tmp_path / "data"))
    assert (tmp_path / "data" / "manifest.parquet").read_bytes() == b"the successor's"


def test_a_files_owner_keeps_a_file_of_the_leases_name(tmp_path: Path) -> None:
    (tmp_path / "driver.json").write_text("mine")
    for other in ((), ("letter.txt",)):
        for name in other:
            (tmp_path / name).touch()
        with pytest.raises(BadInput, match=r"not a driver's lease|wanted a new or empty folder, or a data set"):
            generate(config(tmp_path))
        assert (tmp_path / "driver.json").read_text() == "mine"


def test_growing_in_vain_loses_nothing(tmp_path: Path) -> None:
    before = generate(config(tmp_path / "data", n=10))
    with pytest.raises(BadInput, match="no Ray cluster at 127"):
        generate(config(tmp_path / "data", n=20, executor="ray", address="127.0.0.1:1"))
    with pytest.raises(BadInput, match="holds 10 of its 20 records; run traflow-pipeline generate again"):
        read_manifest(Folder(tmp_path / "data"))
    after = generate(config(tmp_path / "data", n=10))
    assert after.sha256 == before.sha256
    assert read_manifest(Folder(tmp_path / "data")).num_records == 10


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
    with pytest.raises(BadInput, match="wanted a new or empty folder, or a data set"):
        generate(config(tmp_path / "full"))


def test_a_shard_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    source = "tests.pipeline.generation.test_generate:fails_for_one_shard"
    with pytest.raises(WorkFailed, match=r"1 of 5 shards failed: shard 000002 \(records 8 to 11\)"):
        generate(config(tmp_path / "data", teacher=source))
    assert len(list((tmp_path / "data").glob("shard-*.tar"))) == 4
    healed = generate(config(tmp_path / "data"))
    assert shard_bytes(healed) == shard_bytes(generate(config(tmp_path / "whole")))
