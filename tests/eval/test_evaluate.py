import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import fsspec
import numpy as np
import pytest
import torch
import yaml

from eval import models
from eval.config import EvaluateConfig
from eval.evaluate import cautions_of_default, evaluate
from eval.metrics import sample_chunks
from eval.metrics.distances import ReferenceStats, moments
from eval.metrics.nearest import nearest_images
from eval.report import files
from eval.results import Report, read_report
from eval.sampling.samplers import Sampler
from pipeline.common.errors import BadInput, WorkFailed
from pipeline.storage.store import open_store
from tests.support.command import on_ranks
from tests.support.problems import make_data, save_tiny_teacher
from tests.support.spaces import pixels
from trainer.checkpoints import checkpoint
from trainer.config import TrainConfig
from trainer.train import train


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student's run, its data and teacher, and images to measure against."""
    folder = tmp_path_factory.mktemp("evaluate")
    trainer = {"num_steps": 4, "batch_size": 8, "log_every": 2}
    values = {"data": make_data(folder), "out": folder / "run", "device": "cpu", "trainer": trainer}
    train(TrainConfig.model_validate(values))
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images)
    return folder


def settings(root: Path) -> dict[str, Any]:
    return {
        "reference": str(root / "images.npz"),
        "features": "tests.support.spaces:pixels",
        "num_samples": 32,
        "num_ranges": 2,
        "batch_size": 8,
        "steps": (1, 2),
        "teacher_solver": {"name": "rk4", "num_steps": 4},
        "baselines": ("euler", "midpoint"),
        "baseline_grids": ("even", "edm"),
        "baseline_evaluations": (1, 2),
        "num_trajectories": 16,
        "device": "cpu",
    }


def run(root: Path, out: Path, **changes: Any) -> Report:
    values = settings(root) | {"checkpoint": root / "run", "out": out} | changes
    report = evaluate(EvaluateConfig.model_validate(values))
    assert report is not None
    return report


@pytest.fixture(scope="module")
def out(root: Path) -> Path:
    run(root, root / "report")
    return root / "report"


def test_a_report_has_the_teacher_its_few_step_samplers_and_the_student(out: Path) -> None:
    report = read_report(out)
    names = ["euler 1", "euler 2", "euler 2, EDM grid", "midpoint 2"]
    assert [row.sampler for row in report.rows] == ["rk4 4", *names, "1 step", "2 steps"]
    assert [row.nfe for row in report.rows] == [16, 1, 2, 2, 2, 1, 2]
    assert [len(row.scores["fd-pixels"].values) for row in report.rows] == [2, 1, 1, 1, 1, 2, 2]
    (first, *others) = report.rows
    assert (first.rmse, first.group) == (None, "solver")
    assert all(row.rmse is not None and row.rmse > 0 for row in others)
    assert len({row.sampler for row in report.rows if row.best and row.nfe == 2}) == 1
    assert report.headline.key == "fd-pixels"


def test_the_report_says_where_its_figures_come_from(out: Path, root: Path) -> None:
    report = read_report(out)
    assert (report.num_samples, report.num_ranges, report.seed) == (32, 2, 0)
    assert report.reference.num_images == 60
    assert len(report.reference.sha256) == 64
    assert report.spaces[0].sha256 == "0" * 64
    assert "32 samples do not span" not in " ".join(report.warnings)
    assert report.has_few_samples
    assert {line.name for line in report.curves} >= {"output", "grad_norm"}
    assert report.trajectories is not None
    assert report.trajectories.seen_in_training
    assert report.versions["torch"]
    assert report.training.data_sha256 == report.trajectories.data_sha256


def test_it_leaves_figures_tables_pictures_a_page_and_a_card(out: Path, root: Path) -> None:
    names = (files.CONFIG, files.TABLE, files.PAGE, files.GRID, files.GRID_ALL, files.STRIPS, "metrics.json")
    assert all((out / name).stat().st_size > 0 for name in names)
    assert "pixels" in (root / "run" / files.CARD).read_text()
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["rows"][0]["scores"]["fd-pixels"]["mean"] > 0
    description = json.loads((checkpoint.find(root / "run") / checkpoint.INFO).read_text())
    assert metrics["training"] == {**description, "weights": "ema"}


def test_its_own_command_makes_the_same_figures_again(out: Path, root: Path, tmp_path: Path) -> None:
    report = read_report(out)
    assert report.command == f"traflow-pipeline evaluate --config {out / files.CONFIG}"
    again = run(root, tmp_path / "again")
    assert [row.scores for row in again.rows] == [row.scores for row in report.rows]
    assert [row.rmse for row in again.rows] == [row.rmse for row in report.rows]


def refuse(*_: Any) -> NoReturn:
    raise AssertionError("drawn again")


def test_what_is_finished_is_not_drawn_again(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(root, tmp_path)
    draw_chunk, drawn = sample_chunks._draw_chunk, []

    def counted(sampler: Any, *arguments: Any) -> Any:
        drawn.append(sampler.title)
        return draw_chunk(sampler, *arguments)

    monkeypatch.setattr(sample_chunks, "_draw_chunk", counted)
    assert run(root, tmp_path).rows == first.rows
    assert drawn == []
    run(root, tmp_path, steps=(1, 2, (1.0, 0.5, 0.0)), num_ranges=3)
    # A new row of three ranges, and the third range of the teacher's solver and of the two rows before.
    assert sorted(drawn) == [
        "student, 1 step",
        "student, 2 steps",
        *["student, times 1, 0.5, 0"] * 3,
        "teacher's solver, rk4 4",
    ]
    drawn.clear()
    run(root, tmp_path, seed=1)
    assert len(drawn) == 10  # other noise: all of it
    assert len(list((tmp_path / "samples").iterdir())) == 1


def test_without_its_network_a_metric_is_marked_and_all_else_is_computed(root: Path, tmp_path: Path) -> None:
    report = run(root, tmp_path, features=("tests.support.spaces:pixels", "tests.support.spaces:missing"))
    assert report.rows[0].scores["fd-pixels"].mean > 0
    (gap,) = report.not_computed
    assert "put it there" in gap.reason
    report = run(root, tmp_path / "none", features="tests.support.spaces:missing")
    assert report.headline.key == "rmse"
    assert report.rows[-1].scores["rmse"].mean == report.rows[-1].rmse


def test_a_required_metric_that_cannot_be_computed_fails_after_all_else_is_written(root: Path, tmp_path: Path) -> None:
    spaces = ("tests.support.spaces:pixels", "tests.support.spaces:missing")
    missing = "fd-tests.support.spaces:missing"
    with pytest.raises(WorkFailed, match=f"--require {missing}: it was not computed; .*put it there"):
        run(root, tmp_path, features=spaces, require=missing)
    assert read_report(tmp_path).rows
    run(root, tmp_path, features=spaces, require="fd-pixels,rmse")
    with pytest.raises(BadInput, match="--require fid: wanted a metric of this evaluation: fd-pixels, "):
        run(root, tmp_path / "other", require="fid")


def test_a_sampler_of_others_that_is_not_finite_is_a_row_that_says_so(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Sampler("few-step", "newton 2", lambda x, label: (x / 0, 2))
    monkeypatch.setattr("eval.sampling.baselines.baseline_samplers", lambda *_: [broken])
    run(root, tmp_path, baseline_evaluations=(2,))
    report = read_report(tmp_path)
    assert [(row.sampler, row.scores) for row in report.rows if not row.is_finite] == [("newton 2", {})]
    assert "newton 2 | 2 | not finite |" in (tmp_path / files.TABLE).read_text()
    assert report.rows[-1].scores


def test_a_report_says_in_which_precision_its_samples_were_drawn(out: Path, root: Path, tmp_path: Path) -> None:
    assert read_report(out).precision == "fp32"
    report = run(root, tmp_path, precision="bf16", baselines=(), steps=(1,), num_ranges=1)
    assert report.precision == "bf16"
    assert report.rows[0].scores != read_report(out).rows[0].scores
    assert "precision: bf16" in (tmp_path / files.TABLE).read_text()


def test_two_ranks_under_torchrun_make_the_figures_of_one(root: Path, tmp_path: Path) -> None:
    sizes = {"num_samples": 1100, "num_ranges": 1, "batch_size": 128, "steps": (1,), "baselines": ()}  # two chunks
    values = settings(root) | sizes | {"checkpoint": str(root / "run"), "out": str(tmp_path / "two")}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(json.loads(json.dumps({"evaluate": values}))))
    on_ranks(2, ["evaluate", "--config", str(tmp_path / "two.yaml")], says="the page")
    two, one = read_report(tmp_path / "two"), run(root, tmp_path / "one", **sizes)
    assert [row.scores for row in two.rows] == [row.scores for row in one.rows]
    assert two.command.startswith("torchrun --nproc-per-node 2 -m traflow_pipeline evaluate")


def test_a_student_is_evaluated_without_its_teacher_too(root: Path, tmp_path: Path) -> None:
    report = run(root, tmp_path, teacher="none")
    assert [row.sampler for row in report.rows] == ["1 step", "2 steps"]
    assert all(row.rmse is None for row in report.rows)
    assert report.trajectories is not None


def test_a_teachers_run_is_evaluated_alone(root: Path, tmp_path: Path) -> None:
    trainer = {"num_steps": 2, "batch_size": 8, "log_every": 2}
    values = {"data": root / "data", "recipe": "reflow", "out": tmp_path / "run", "device": "cpu", "trainer": trainer}
    train(TrainConfig.model_validate(values))
    report = run(root, tmp_path / "report", checkpoint=tmp_path / "run")
    assert {row.group for row in report.rows} == {"solver", "few-step"}


def test_weights_other_than_the_first_average_are_named(root: Path, tmp_path: Path) -> None:
    ema, network = run(root, tmp_path / "ema"), run(root, tmp_path / "network", weights="network")
    assert network.training.weights == "network"
    assert network.rows[-1].scores != ema.rows[-1].scores
    with pytest.raises(BadInput, match=r"wanted the weights 'none' \(none.safetensors\); it holds ema, network"):
        run(root, tmp_path / "none", weights="none")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"reference": None}, "'reference' is missing"),
        ({"features": "digits"}, r"wanted images of \[1, 8, 8\]"),
        ({"features": "pictures"}, "no features 'pictures': wanted one of digits, values, inception"),
        ({"reference": "digits"}, r"wanted a reference of \[1, 4, 4\], as the samples are"),
        ({"baselines": "newton"}, "no baseline 'newton': wanted one of euler"),
        ({"steps": ((1.0, 0.5),)}, "wanted times that fall from 1 to 0"),
        ({"checkpoint": "nowhere"}, "wanted a checkpoint, the folder or URL of a run"),
        ({"data": "nowhere"}, "nowhere"),
        ({"precision": "tf32"}, "precision tf32: wanted a GPU that has it"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    root: Path, tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    with pytest.raises(BadInput, match=fault):
        run(root, tmp_path / "out", **changes)
    if "data" not in changes:
        assert not (tmp_path / "out").exists()


def test_a_run_and_its_report_may_lie_in_a_store(root: Path, tmp_path: Path, s3: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    trainer = {"num_steps": 2, "batch_size": 8, "log_every": 2}
    values = {"data": root / "data", "out": f"{s3}/run", "device": "cpu", "trainer": trainer}
    train(TrainConfig.model_validate(values))
    shutil.rmtree(tmp_path)  # another machine
    tmp_path.mkdir()
    evaluate(EvaluateConfig.model_validate(settings(root) | {"checkpoint": f"{s3}/run", "out": f"{s3}/report"}))
    assert set(open_store(f"{s3}/report").sizes()) == {*files.WRITTEN, "samples/"}
    assert files.CARD in open_store(f"{s3}/run").sizes()


def test_a_lost_machine_takes_at_most_one_chunk_of_an_evaluation_at_a_url_with_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_chunks, "CHUNK_SAMPLES", 16)
    undisturbed = run(root, tmp_path / "undisturbed")
    draw_chunk, drawn, url = sample_chunks._draw_chunk, list[tuple[str, int]](), f"memory://{tmp_path.name}/report"

    def draw(sampler: Sampler, settings: Any, indices: range, *rest: Any) -> Any:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"machine-{len(drawn) // 5}"))  # each is lost after five
        if len(drawn) % 5 == 4:
            drawn.append(("lost", 0))
            raise WorkFailed("the machine is gone")
        drawn.append((sampler.name, indices.start))
        return draw_chunk(sampler, settings, indices, *rest)

    monkeypatch.setattr(sample_chunks, "_draw_chunk", draw)
    for _ in range(4):
        with pytest.raises(WorkFailed, match="the machine is gone"):
            run(root, url)  # type: ignore[arg-type]
    report = run(root, url)  # type: ignore[arg-type]
    assert [row.scores for row in report.rows] == [row.scores for row in undisturbed.rows]
    assert [row.rmse for row in report.rows] == [row.rmse for row in undisturbed.rows]
    chunks = [each for each in drawn if each[0] != "lost"]
    assert len(chunks) == len(set(chunks)) == 2 * (3 * 2 + 4)
    assert not list(fsspec.filesystem("memory").glob(f"{url}/**/*.npz")), "what is scored leaves no features there"


def test_the_teacher_s_few_step_samplers_take_the_student_s_steps_by_default() -> None:
    config = EvaluateConfig.model_validate({"checkpoint": "run", "out": "report", "steps": [1, [1.0, 0.5, 0.0], 2, 3]})
    assert (config.baselines, config.baseline_grids) == (("euler", "midpoint", "heun"), ("even",))
    assert config.evaluations == (1, 2, 3)
    assert config.model_copy(update={"baseline_evaluations": (5,)}).evaluations == (5,)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of a teacher with classes, with three checkpoints; and images to measure against."""
    folder = tmp_path_factory.mktemp("classes")
    data = make_data(folder, teacher=str(save_tiny_teacher(folder / "classes.safetensors", num_classes=3)))
    trainer = {"num_steps": 6, "batch_size": 8, "log_every": 2, "checkpoint_every": 2, "keep_checkpoints": 3}
    train(TrainConfig.model_validate({"data": data, "out": folder / "run", "device": "cpu", "trainer": trainer}))
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images)
    return folder


def test_other_checkpoints_are_scored_by_their_training_step(classes: Path, tmp_path: Path) -> None:
    report = run(classes, tmp_path / "all", checkpoints="all", baselines=())
    assert [(each.step, [row.sampler for row in each.rows]) for each in report.other_checkpoints] == [
        *((2, ["1 step", "2 steps"]), (4, ["1 step", "2 steps"])),
    ]
    alone = run(classes, tmp_path / "alone", checkpoint=classes / "run/checkpoints/step-000002", baselines=())
    (first, _), own = report.other_checkpoints, alone.rows_of("student")
    assert [row.scores["fd-pixels"].values[:1] for row in own] == [row.scores["fd-pixels"].values for row in first.rows]
    assert [row.rmse for row in own] == [row.rmse for row in first.rows]
    assert "Quality during the training" in (tmp_path / "all" / files.PAGE).read_text()
    assert run(classes, tmp_path / "all", checkpoints="2,4", baselines=()).other_checkpoints == report.other_checkpoints


def test_other_checkpoints_of_a_run_at_a_url_are_scored_as_those_in_a_folder(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "machine"))
    url = f"memory://{tmp_path.name}/run"
    fsspec.filesystem("memory").put(str(classes / "run"), url, recursive=True)
    less: dict[str, Any] = {"baselines": (), "num_ranges": 1, "steps": (1,)}
    here = run(classes, tmp_path / "here", checkpoints="all", **less)
    there = run(classes, tmp_path / "there", checkpoint=url, checkpoints="all", **less)
    scored = [
        [(each.step, row.scores, row.rmse) for each in report.other_checkpoints for row in each.rows]
        for report in (here, there)
    ]
    assert [step for step, _, _ in scored[1]] == [2, 4]
    assert scored[0] == scored[1]
    with pytest.raises(BadInput, match=rf"checkpoints: wanted steps of {url}: 2, 4, 6; not 3"):
        run(classes, tmp_path / "there", checkpoint=f"{url}/", checkpoints="3", **less)


def test_scans_of_digits_are_no_silent_reference_of_another_teacher() -> None:
    default = EvaluateConfig.model_validate({"checkpoint": "run", "out": "report"})
    given = default.model_copy(update={"reference": "digits"})
    [caution] = cautions_of_default(default, "digits", "bars:load")
    assert "if this teacher draws anything else, give --reference" in caution
    assert cautions_of_default(default, "digits", "digits") == cautions_of_default(given, "digits", "bars:load") == []


def test_checkpoints_that_are_not_there_are_refused(classes: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"checkpoints: wanted steps of .*run: 2, 4, 6; not 3"):
        run(classes, tmp_path / "out", checkpoints="3")
    with pytest.raises(ValueError, match="checkpoints"):
        run(classes, tmp_path / "out", checkpoints="some")


def test_the_page_has_rows_of_each_class_and_the_nearest_images(classes: Path, tmp_path: Path) -> None:
    run(classes, tmp_path, baselines=())
    page = (tmp_path / files.PAGE).read_text()
    assert "Samples of each class" in page
    assert page.count('role="img" aria-label="6 samples: 2"') == 2  # of the student and of the teacher
    assert "nearest of 60 images" in page


def test_the_nearest_image_of_a_copy_is_what_it_copies() -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 1, 4, 4), dtype=np.uint8)
    space = pixels(torch.device("cpu"))
    features = space.extract(images).features
    stats = ReferenceStats("pixels", moments(features), features, len(images))
    found = nearest_images("student", images[[7, 3]], images, space, stats)
    assert found is not None
    assert np.array_equal(found.neighbours[:, 0], images[[7, 3]])
    assert (found.neighbours.shape, found.num_images) == ((2, 3, 1, 4, 4), 60)
    assert nearest_images("student", images[:1], images, space, replace(stats, features=None)) is None


def test_what_is_no_picture_is_compared_with_its_teacher_alone(tmp_path: Path) -> None:
    data = make_data(tmp_path, teacher=str(save_tiny_teacher(tmp_path / "two.safetensors", image_channels=2)))
    trainer = {"num_steps": 1, "batch_size": 8}
    train(TrainConfig.model_validate({"data": data, "out": tmp_path / "run", "device": "cpu", "trainer": trainer}))
    changes = {"features": None, "reference": None, "lpips": "auto", "steps": (1,), "baselines": (), "num_ranges": 1}
    report = run(tmp_path, tmp_path / "report", **changes)
    assert report.headline.key == "rmse"
    (missing,) = report.not_computed
    assert "samples of shape [2, 4, 4] have no usual reference" in missing.reason


def test_another_teacher_is_refused(root: Path, tmp_path: Path) -> None:
    other = save_tiny_teacher(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(BadInput, match="distilled from another teacher"):
        run(root, tmp_path / "out", teacher=str(other))
    with pytest.raises(BadInput, match="--teacher none evaluates without it"):
        run(root, tmp_path / "out", teacher="nowhere.safetensors")


def test_evaluations_stand_side_by_side(out: Path, root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    run(root, other, steps=(1,), baselines=(), num_ranges=1)
    files.compare([str(out), f"{other}/"], tmp_path / "compare.html")
    page = (tmp_path / "compare.html").read_text()
    assert "report" in page
    assert "other" in page
    with pytest.raises(BadInput, match=r"wanted the metrics\.json of an evaluation"):
        files.compare([str(out), str(tmp_path)], tmp_path / "compare.html")


def test_a_teacher_whose_code_has_changed_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(*_: Any) -> NoReturn:
        raise BadInput("its code has changed")

    monkeypatch.setattr("eval.evaluate.require_same_flow", changed)
    monkeypatch.setattr(
        "eval.evaluate.open_models", lambda *given: replace(models.open_models(*given), has_own_code=True)
    )
    with pytest.raises(BadInput, match="its code has changed; --teacher none evaluates without it"):
        run(root, tmp_path / "changed")
    assert not (tmp_path / "changed").exists()


def test_a_report_is_not_replaced_by_one_over_other_samples(out: Path, root: Path) -> None:
    config = EvaluateConfig.model_validate(settings(root) | {"checkpoint": root / "run", "out": out})
    files.check_same(config, str(out))
    files.check_same(config.model_copy(update={"steps": (1, 8)}), str(out))
    with pytest.raises(BadInput, match=r"holds another evaluation \(num_samples: .* there, 64 asked\); choose another"):
        files.check_same(config.model_copy(update={"num_samples": 64}), str(out))
    files.check_same(config.model_copy(update={"num_samples": 64}), str(out / "elsewhere"))
    files.check_same(config.model_copy(update={"checkpoint": str(root / "run" / "checkpoints")}), str(out))
    with pytest.raises(BadInput, match=r"holds another evaluation \(checkpoint: "):
        files.check_same(config.model_copy(update={"checkpoint": str(root)[:-1]}), str(out))


@pytest.mark.parametrize("content", ["", "[]", "a: 1", "evaluate: [", "evaluate: 3"])
def test_a_configuration_that_cannot_be_read_is_no_evaluation(root: Path, tmp_path: Path, content: str) -> None:
    config = EvaluateConfig.model_validate(settings(root) | {"checkpoint": root / "run", "out": tmp_path})
    (tmp_path / "metrics.json").write_text("{}")
    files.check_same(config, str(tmp_path))
    (tmp_path / "evaluate.yaml").write_text(content)
    files.check_same(config, str(tmp_path))
