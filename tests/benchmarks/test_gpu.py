import json
import subprocess
import sys
import time
from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import NETWORKS, Part, Run, measure
from benchmarks.training import LOSSES
from pipeline import networks

CPU = torch.device("cpu")
ABSENT = ("cleanfid", "lpips", "prdc", "ray", "sklearn", "threadpoolctl", "torch_fidelity", "torchvision")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(CPU, True, tmp_path, tmp_path / "gpu.json")


def test_every_part_gives_its_figures(run: Run) -> None:
    measure(run, budget=300)
    assert run.remarks == []
    found = json.loads(run.out.read_text())["parts"]
    assert len(found["evaluation"]) == len(gpu.EVALUATIONS)
    assert {(row["loss"], row["compiled"]) for row in found["training"]} == set(
        product([*LOSSES, "anchored"], (True, False))
    )
    assert all(0 < row["operations"] < 10_000 for row in found["training"])
    assert {row["precision"] for row in found["error"]} == {"fp32", "tf32"}
    assert [row["batch"] for row in found["batch"]][-1] in (1, 2)
    assert [row["compiled"] for row in found["batch"]][-1]
    ours, scipy = found["solver"]
    assert min(ours["evaluations"], scipy["evaluations"]) > 8
    assert 0 < found["shard"][0]["teachers_share"] < 1
    assert all(row["holds"] for row in found["check"])
    assert [row["evaluations"] for row in found["sampling"]] == [1, 2, 4, 8]
    parts = {"evaluation", "training", "training loop", "shard", "check", "sampling", "evaluate"}
    assert set(found) == parts | {"error", "batch", "solver"}
    assert "| 55.7 M | bf16 | True |" in gpu.tables(run)


def test_a_part_that_takes_too_long_or_fails_leaves_the_figures_of_the_others(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(run: Run) -> None:
        run.add("endless", figure=1)
        while True:
            with suppress(Exception):  # as libraries do
                time.sleep(1)

    def failing(run: Run) -> None:
        raise RuntimeError("no memory")

    def brief(run: Run) -> None:
        run.add("brief", figure=2)

    parts = [Part("endless", endless, 0.05), Part("failing", failing, 9), Part("brief", brief, 9)]
    monkeypatch.setattr(gpu, "PARTS", parts)
    measure(run, budget=9)
    assert set(json.loads(run.out.read_text())["parts"]) == {"endless", "brief"}
    assert run.remarks == ["endless: stopped when its time was up", "failing failed: RuntimeError: no memory"]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_the_sizes_that_their_names_say(name: str) -> None:
    with torch.device("meta"):
        network = networks.build(NETWORKS[name])
    assert f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} M" == name


def test_it_needs_no_package_that_a_bare_gpu_machine_lacks() -> None:
    code = f"import sys; import benchmarks.gpu; print([name for name in {ABSENT} if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.strip() == "[]"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")
def test_half_precision_compiling_resuming_and_shards_hold_on_a_gpu(tmp_path: Path) -> None:
    run = Run(torch.device("cuda"), False, tmp_path, tmp_path / "gpu.json")
    gpu.checks(run)
    assert run.remarks == []
    assert all(row["holds"] for row in run.rows["check"])
