import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.recipes import Row, Study, identity, needs, read, recipe_of, run, students, table
from pipeline.common.config import load_sections, merge
from pipeline.generation.generate import GenerateConfig, generate

TINY = {
    "generate": {"n": 64, "shard_size": 64, "solver": {"name": "euler", "num_steps": 9}},
    "train": {"trainer": {"batch_size": 16, "warmup_steps": 1}},
    "evaluate": {"num_samples": 100, "steps": [1, 2]},
}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(merge(load_sections("quickstart"), TINY), tmp_path)


def test_a_recipe_is_trained_for_the_units_that_its_losses_leave_and_scored(study: Study) -> None:
    generate(GenerateConfig.model_validate(study.sections["generate"] | {"out": str(study.data), "executor": "inline"}))
    (study.out / "samples").mkdir()
    row = run(study, "anchored", 0, 12)
    assert row.num_steps == round(12 / recipe_of("anchored").cost)
    assert set(row.distances) == {"1", "2", "2 shifted"}
    assert (study.out / "samples" / "anchored-0.png").is_file()
    study.results.write_text(json.dumps(asdict(row)) + "\n")
    assert read(study.results) == [row]
    assert f"| {row.distances['1']:.2f} |" in table(study, ["anchored"], [0], 12)


def test_a_row_of_the_table_has_the_mean_of_its_seeds_in_the_better_steps_and_half_their_range(study: Study) -> None:
    row = Row("trajectory", identity(study, "trajectory"), 0, 9, 3, 1.0, {"1": 2.0, "2": 1.0, "2 shifted": 0.5})
    rows = [row, replace(row, seed=1, distances={"1": 4.0, "2": 1.0, "2 shifted": 1.0})]
    study.results.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    last = table(study, ["trajectory"], [0, 1], 9).splitlines()[-1]
    assert last == "| trajectory | 3.00 ± 1.00 | 0.75 ± 0.25 (shifted) | 3 | 3.00 | 1 | pairs |"


def test_a_result_is_of_its_recipe_and_of_what_the_config_trains_and_scores(study: Study) -> None:
    found = identity(study, "anchored")
    assert identity(study, "trajectory") != found
    assert identity(replace(study, out=Path("elsewhere")), "anchored") == found
    for section, key, value, same in [
        ("train", "recipe", "trajectory", True),
        ("evaluate", "num_samples", 7, False),
        ("generate", "n", 7, False),
    ]:
        other = replace(study, sections=merge(study.sections, {section: {key: value}}))
        assert (identity(other, "anchored") == found) == same


def test_what_a_recipe_needs_is_said() -> None:
    assert {"anchored", "traflow", "boot"} <= set(students())
    assert "reflow" not in students()
    assert needs(recipe_of("instaflow")) == "pairs"
    assert needs(recipe_of("distribution-matching")) == "live teacher, fresh noise, own network"
