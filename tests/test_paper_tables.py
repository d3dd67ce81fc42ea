"""The paper's tables: a config for every row, one run makes its figures, and compare prints them beside the paper's."""

from pathlib import Path

import pytest
import torch

from eval.report import paper
from pipeline import networks
from pipeline.common.config import CONFIGS, config_names, load_sections
from tests.support.command import assert_one_line, call
from traflow_pipeline.run import open_run

ROWS = [(table, row) for table, found in paper.load().tables.items() for row in found.rows if "slimflow" not in row]
MINIATURE = {
    "generate.teacher": "digits",
    "generate.n": "64",
    "generate.solver": "{name: euler, num_steps: 9}",
    "generate.precision": "fp32",
    "generate.executor": "inline",
    "generate.batch_size": "32",
    "generate.block_size": "32",
    "generate.shard_size": "64",
    "train.device": "cpu",
    "train.network": "{resolution: 8, image_channels: 1, channels: 8}",
    "train.trainer": "{num_steps: 2, batch_size: 8, precision: fp32}",
    "evaluate.device": "cpu",
    "evaluate.reference": "digits",
    "evaluate.num_samples": "32",
    "evaluate.num_ranges": "1",
    "evaluate.teacher_solver": "{name: euler, num_steps: 2}",
    "evaluate.baselines": "[]",
}


def run_row(folder: Path, row: str, seed: int) -> None:
    sets = [part for key, value in MINIATURE.items() for part in ("--set", f"{key}={value}")]
    out = folder / f"seed-{seed}" / row
    call(folder, "run", f"paper/table7/{row}", "--out", out, *sets, "--set", f"train.seed={seed}")


@pytest.mark.parametrize(("table", "row"), ROWS)
def test_every_row_of_ours_is_one_run_of_three_stages(table: str, row: str, tmp_path: Path) -> None:
    plan = open_run(f"paper/{table}/{row}", None, [], None)
    assert list(plan.stages) == ["generate", "train", "evaluate"]
    assert plan.location == f"runs/paper/{table}/{row}"
    assert plan.train is not None
    assert plan.train.network is not None
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in networks.build(plan.train.network).parameters())
    printed = paper.load().tables[table].rows[row].method.partition(", ")[2]
    assert table == "table7" or f"{size / 1e6:.1f} M" == printed
    assert plan.train.trainer.num_steps * plan.train.trainer.batch_size == 50_000_000


def test_every_config_of_the_tables_is_a_row_or_its_base() -> None:
    known = {f"paper/{table}/{row}" for table, row in ROWS}
    found = {name for name in config_names() if name.startswith("paper/table")}
    assert found == known
    assert len([row for table, row in ROWS if table == "table7"]) == 7
    assert {"paper/celeba64/celeba64-16m", "paper/celeba64/teacher"} < set(config_names())
    assert (CONFIGS / "paper" / "common.yaml").exists()


def test_rows_of_the_ablation_run_in_miniature_and_are_printed_beside_the_papers(tmp_path: Path) -> None:
    for row, seed in (("edm-l2", 0), ("edm-l2", 1), ("2rf-l2", 0)):
        run_row(tmp_path, row, seed)
    runs = sorted(tmp_path.glob("seed-*/*"))
    printed = call(tmp_path, "compare", *runs, "--paper", "table7").stdout
    lines = {line.split(" | ")[0].strip("| "): line for line in printed.splitlines() if " | " in line}
    assert "(2 runs)" in lines["EDM, L2"]
    assert "| 2-RF, LPIPS | 1 | 13 | — |" in printed
    assert "32 samples, where the paper took 50,000" in printed
    assert (tmp_path / "compare.html").exists()
    assert_one_line(call(tmp_path, "compare", *runs, "--paper", "table4", code=2), "wanted the run of a row of table4")
    assert_one_line(call(tmp_path, "compare", *runs, "--paper", "table", code=2), "wanted one of table4, table5")


def test_a_config_lies_over_its_base_and_is_never_its_own(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("generate: {n: 1, teacher: digits}\ntrain: {recipe: scot}\n")
    (tmp_path / "one.yaml").write_text("base: base.yaml\ngenerate: {n: 2}\n")
    found = load_sections(str(tmp_path / "one.yaml"))
    assert found == {"generate": {"n": 2, "teacher": "digits"}, "train": {"recipe": "scot"}}
    for text, complaint in (
        ("base: one.yaml", "it is its own base"),
        ("base: nowhere.yaml", "cannot be read"),
        ("base: [a]", "wanted the path of a config as base"),
    ):
        (tmp_path / "one.yaml").write_text(text)
        assert_one_line(call(tmp_path, "run", "one.yaml", code=2), complaint)
