"""What data, training and evaluation took, from what they left behind."""

import json
from pathlib import Path

import pytest

from eval.report import provenance, tables
from eval.results import Work
from pipeline.common.environment import Environment, commit, installed_version
from tests.support.reports import TRAINING, digits_report
from trainer.checkpoints.checkpoint import CheckpointInfo

INFO = CheckpointInfo.model_validate({key: value for key, value in TRAINING.items() if key != "weights"})
HERE = Environment(machine="NVIDIA H100", python="3.12.3", program="0.1.0", commit="c0ffee")


def test_the_hours_of_a_training_are_its_images_by_their_rate(tmp_path: Path) -> None:
    lines = [{"step": 20, "images_per_second": 128.0}, {"step": 50, "images_per_second": 64.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    info = INFO.model_copy(update={"ranks": 4, "environment": HERE})
    work = provenance.training_work(tmp_path, info)
    assert work.hours == pytest.approx((20 + 60) / 3600)
    assert work.device_hours == pytest.approx(4 * 80 / 3600)


def test_a_training_without_a_log_has_no_hours(tmp_path: Path) -> None:
    assert provenance.training_work(tmp_path, INFO) == Work(hours=None, num_devices=1, environment=None)


def test_data_that_are_gone_are_left_out(tmp_path: Path) -> None:
    assert provenance.generation(None) is None
    assert provenance.generation(str(tmp_path)) is None


def test_a_report_says_what_every_stage_took() -> None:
    work = {"hours": 0.5, "num_devices": 4, "environment": HERE}
    made = {
        "num_records": 8192,
        "num_states": 8,
        "solver": "rk4 9",
        "nfe": 36.0,
        "device_hours": 0.25,
        "machines": ["x"],
    }
    facts = tables.facts(digits_report(generation=made, training_work=work))
    assert facts["generate"] == "8,192 records of 8 states, rk4 9, 36 evaluations each; 0.25 device hours on x"
    assert facts["train"] == ("0.5 h (2 device hours) on NVIDIA H100, Python 3.12.3, traflow-pipeline 0.1.0 at c0ffee")
    assert "generate" not in tables.facts(digits_report())


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert installed_version("no-such-package") is None
    assert installed_version("numpy")


def test_the_commit_is_that_of_the_clone() -> None:
    assert commit() is None or len((commit() or "").rstrip("+")) == 40
