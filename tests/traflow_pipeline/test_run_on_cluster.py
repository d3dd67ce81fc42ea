"""The three stages through `run` on a cluster of several nodes, which loses one of them and a worker on the way."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from ray.cluster_utils import Cluster

from eval.results import read_report
from pipeline.dataset.manifest import read_manifest
from pipeline.storage.store import open_store
from tests.support.command import SCRIPT
from tests.support.runs import write_config
from traflow_pipeline.run import open_run, run_stages
from trainer.checkpoints import checkpoint

pytestmark = pytest.mark.cluster
PATIENCE_SECONDS = 240
NUM_STEPS = 300


def wait_until(condition: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_that_loses_a_node_and_a_worker_ends_with_the_same_data_and_a_trained_student(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    sections = yaml.safe_load(config.read_text())
    sections["generate"] |= {"n": 4096, "executor": "ray"}
    sections["train"]["trainer"] |= {"num_steps": NUM_STEPS, "checkpoint_every": 20}
    config.write_text(yaml.safe_dump(sections))
    calm = open_run(str(config), str(tmp_path / "calm"), ["generate.executor=inline"], None)
    run_stages(calm, on_cluster=False, address=None, only="generate")

    place = tmp_path / "run"
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        going = machines.add_node(num_cpus=1)
        machines.add_node(num_cpus=1)
        machines.add_node(num_cpus=1)
        machines.wait_for_nodes()
        settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [str(SCRIPT), "run", str(config), "--out", str(place), "--address", machines.address]
        process = subprocess.Popen(command, env=settings)
        wait_until(lambda: len(list((place / "data").glob("shard-*.json"))) > 3, process)
        machines.remove_node(going, allow_graceful=False)
        wait_until(lambda: bool(checkpoint.find_all(place / "train")), process)
        found = subprocess.run(["pgrep", "-f", "ray::RayTrainWorker"], capture_output=True, text=True, check=True)
        os.kill(int(found.stdout.split()[0]), signal.SIGKILL)
        assert process.wait(timeout=PATIENCE_SECONDS) == 0
    finally:
        machines.shutdown()  # type: ignore[no-untyped-call]
    digests = [read_manifest(open_store(str(folder / "data"))).sha256 for folder in (tmp_path / "calm", place)]
    assert digests[0] == digests[1]
    assert checkpoint.read_info(checkpoint.find(place / "train")).step == NUM_STEPS
    assert read_report(place / "report").rows[-1].scores["fd-pixels"].mean > 0
