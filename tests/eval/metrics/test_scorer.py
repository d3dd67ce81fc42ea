from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from torch import Tensor

from eval.features.spaces import Extracted, FeatureSpace
from eval.metrics import distances, sample_chunks
from eval.metrics.distances import ReferenceStats, moments
from eval.metrics.sample_chunks import SampleRange, SamplingSettings
from eval.metrics.scorer import Result, Scorer, scoring_thread
from eval.sampling.samplers import Sampler, draw_samples, student_sampler, teacher_sampler
from pipeline.common.errors import WorkFailed
from pipeline.common.progress import Advance
from pipeline.flow.solver import Solver
from pipeline.storage.work_folder import WorkFolder
from tests.support.problems import SHAPE, ExactStudent, GaussianFlow
from tests.support.spaces import pixels
from trainer.distillation.student import Student
from trainer.distributed import Ranks

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
FLOW = GaussianFlow()
EXACT: Student = ExactStudent(FLOW)  # type: ignore[assignment]
STUDENT = student_sampler(EXACT, 1, 1.0, 0.0)
TEACHER = teacher_sampler(FLOW.teacher(), Solver(name="rk4", num_steps=32))
SPACE = pixels(CPU)
SETTINGS = SamplingSettings(SHAPE, SHAPE, 0, (-1.0, 1.0), seed=3, batch_size=8, spaces={"pixels": SPACE})
NUM_SAMPLES = 40  # chunks of 16


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_chunks, "CHUNK_SAMPLES", 16)


def scorer(folder: Path, distance: Callable[..., Any] | None = None, ranks: Ranks = ALONE) -> Scorer:
    features = SPACE.extract(np.random.default_rng(0).integers(0, 256, (50, *SHAPE), dtype=np.uint8)).features
    stats = {"pixels": ReferenceStats("pixels", moments(features), features, len(features))}
    return Scorer(WorkFolder(folder), "settings", SETTINGS, NUM_SAMPLES, stats, distance, ranks)


def _silent(amount: float, status: str = "", *, skipped: bool = False) -> None:
    """No bar is shown."""


def score(work: Scorer, sampler: Sampler, range_index: int = 0) -> Result:
    with scoring_thread() as scoring:
        future = work.score(sampler, range_index, _silent, scoring)
        assert future is not None
        return future.result()


def test_ranges_hold_the_noise_that_their_indices_name(tmp_path: Path) -> None:
    for range_index in (0, 1):
        indices = range(range_index * NUM_SAMPLES, (range_index + 1) * NUM_SAMPLES)
        drawn = SampleRange(WorkFolder(tmp_path / f"{range_index}"), indices, SETTINGS.chunk_size)
        drawn.draw(STUDENT, SETTINGS, ALONE, lambda amount, status="", **options: None)
        whole = torch.cat([b.samples for b in draw_samples(STUDENT, SHAPE, 0, 3, indices, 8, CPU)])
        images = np.clip(whole.numpy() * 127.5 + 128, 0, 255).astype(np.uint8)
        np.testing.assert_array_equal(drawn.extracted("pixels").features, SPACE.extract(images).features)
        np.testing.assert_array_equal(drawn.first_samples, whole[:16].numpy())
        assert drawn.nfe == 1


def test_two_ranks_draw_what_one_draws(tmp_path: Path) -> None:
    found = []
    for world in (1, 2):
        drawn = SampleRange(WorkFolder(tmp_path / f"{world}"), range(NUM_SAMPLES), SETTINGS.chunk_size)
        amounts: list[int] = []
        for rank in range(world):
            ranks = Ranks(rank, world, CPU)
            drawn.draw(STUDENT, SETTINGS, ranks, lambda amount, status="", to=amounts, **options: to.append(amount))
            assert sum(amounts) == sum(SETTINGS.share(NUM_SAMPLES, Ranks(r, world, CPU)) for r in range(rank + 1))
        assert sum(amounts) == NUM_SAMPLES
        found.append(drawn.extracted("pixels").features)
    np.testing.assert_array_equal(found[0], found[1])


def test_a_speed_is_that_of_batches_after_the_first_where_all_take_little_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, num_draws = 0.0, 0

    def draw(noise: Tensor, label: Tensor | None) -> tuple[Tensor, int]:
        nonlocal clock, num_draws
        clock, num_draws = clock + (0.01 if num_draws else 0.05), num_draws + 1
        return noise, 1

    monkeypatch.setattr("eval.sampling.samplers.time.monotonic", lambda: clock)
    drawn = SampleRange(WorkFolder(tmp_path), range(16), SETTINGS.chunk_size)
    drawn.draw(Sampler("student", "identity", draw), SETTINGS, ALONE, _silent)
    assert drawn.images_per_second == pytest.approx(8 / 0.01)
    assert drawn.nfe == 1
    assert clock >= sample_chunks.TIMED_SECONDS


def test_what_was_drawn_before_a_kill_is_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = score(scorer(tmp_path / "undisturbed"), STUDENT)
    draw_chunk = sample_chunks._draw_chunk
    drawn: list[range] = []

    def counted(
        sampler: Sampler, settings: SamplingSettings, indices: range, device: torch.device, advance: Advance
    ) -> Any:
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(indices)
        return draw_chunk(sampler, settings, indices, device, advance)

    monkeypatch.setattr(sample_chunks, "_draw_chunk", counted)
    with pytest.raises(KeyboardInterrupt):
        score(scorer(tmp_path), STUDENT)
    kept, drawn[:] = list(drawn), []
    resumed = score(scorer(tmp_path), STUDENT)
    assert kept + drawn == [range(16), range(16, 32), range(32, 40)]
    assert resumed.scores == undisturbed.scores


def test_what_is_scored_is_not_drawn_again_and_leaves_no_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = score(scorer(tmp_path), STUDENT)

    def refuse(*_: Any) -> NoReturn:
        raise AssertionError("drawn again")

    with monkeypatch.context() as patch:
        patch.setattr(sample_chunks, "_draw_chunk", refuse)
        assert score(scorer(tmp_path), STUDENT) == first
        assert scorer(tmp_path).first_images(STUDENT).shape == (16, *SHAPE)
        with pytest.raises(AssertionError, match="drawn again"):
            score(scorer(tmp_path), STUDENT, range_index=1)
    assert not list(tmp_path.rglob("*.npz"))


def test_agreement_is_with_the_teachers_own_solver_in_units_of_minus_one_to_one(tmp_path: Path) -> None:
    shifted = Sampler("student", "shifted", lambda x, label: (STUDENT.draw(x, label)[0] + 0.25, 1))

    def distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x - y).abs().flatten(1).amax(1)

    work = scorer(tmp_path, distance)
    teacher, student, off = (score(work, sampler) for sampler in (TEACHER, STUDENT, shifted))
    assert (teacher.rmse, teacher.lpips) == (None, None)
    assert student.rmse == pytest.approx(0, abs=1e-4)
    assert off.rmse == pytest.approx(0.25, abs=1e-4)
    assert off.lpips == pytest.approx(0.25, abs=1e-3)
    again = scorer(tmp_path, distance)
    assert score(again, TEACHER) == teacher  # and its samples are there for rows to come
    assert score(again, student_sampler(EXACT, 2, 1.0, 0.0)).rmse == pytest.approx(0, abs=1e-4)


BROKEN = Sampler("few-step", "broken", lambda x, label: (x / 0, 3))


def test_a_few_step_sampler_that_is_not_finite_is_a_row_without_figures(tmp_path: Path) -> None:
    work = scorer(tmp_path)
    score(work, TEACHER)
    found = score(work, BROKEN)
    assert (found.is_finite, found.scores, found.rmse, found.nfe) == (False, {}, None, 3)
    assert score(scorer(tmp_path), BROKEN) == found
    assert work.first_images(BROKEN).shape == (16, *SHAPE)


@pytest.mark.parametrize("group", ["solver", "student"])
def test_the_subject_of_an_evaluation_must_be_finite(tmp_path: Path, group: Any) -> None:
    with pytest.raises(WorkFailed, match="broken: a sample of 0 to 15 is not finite"):
        score(scorer(tmp_path), replace(BROKEN, group=group))


def test_one_batch_that_is_not_finite_is_enough(tmp_path: Path) -> None:
    counter = count()
    late = replace(BROKEN, draw=lambda x, label: (x / 0 if next(counter) == 1 else x, 1))
    assert not score(scorer(tmp_path), late).is_finite


def test_an_error_that_overflows_is_left_out(tmp_path: Path) -> None:
    work = scorer(tmp_path, lambda x, y: (x - y).square().flatten(1).sum(1))
    score(work, TEACHER)
    found = score(work, replace(BROKEN, draw=lambda x, label: (x.sign() * 3e38, 1)))
    assert found.is_finite
    assert found.rmse == pytest.approx(3e38, rel=1e-3)
    assert found.lpips is None


def test_few_step_rows_are_measured_in_the_headlines_space_alone(tmp_path: Path) -> None:
    looks: list[str] = []

    def watched(name: str) -> FeatureSpace:
        def extract(images: Any) -> Extracted:
            looks.append(name)
            return SPACE.extract(images)

        return replace(SPACE, name=name, extract=extract)

    spaces = {name: watched(name) for name in ("pixels", "other")}
    work = scorer(tmp_path)
    assert work.reference_stats is not None
    stats = work.reference_stats["pixels"]
    work = replace(
        work,
        settings=replace(SETTINGS, spaces=spaces),
        reference_stats={name: replace(stats, space=name) for name in spaces},
    )
    assert set(score(work, replace(STUDENT, group="few-step")).scores) == {"fd-pixels"}
    assert looks == ["pixels"] * 5
    assert {"fd-pixels", "fd-other"} <= set(score(work, STUDENT).scores)
    assert looks.count("other") == 5


def test_features_that_lag_behind_their_samples_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = []
    for behind in (0, 1, 3):
        monkeypatch.setattr(sample_chunks, "_batches_behind", lambda device, behind=behind: behind)
        chunks.append(sample_chunks._draw_chunk(STUDENT, SETTINGS, range(40), CPU, _silent))
    for name in ("pixels.features", "samples", "evaluations"):
        assert all(np.array_equal(chunk[name], chunks[0][name]) for chunk in chunks)


def test_the_next_batch_is_drawn_before_the_features_of_the_last_are_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def begin(self: FeatureSpace, images: Any) -> Callable[[], Any]:
        def finish() -> Any:
            order.append("finish")
            return SPACE.extract(images)

        order.append("begin")
        return finish

    def draw(x: Tensor, label: Tensor | None) -> tuple[Tensor, int]:
        order.append("draw")
        return STUDENT.draw(x, label)

    drawing = replace(STUDENT, draw=draw)
    monkeypatch.setattr(FeatureSpace, "begin", begin)
    monkeypatch.setattr(sample_chunks, "_batches_behind", lambda device: 1)
    sample_chunks._draw_chunk(drawing, SETTINGS, range(24), CPU, _silent)
    assert order == ["draw", "begin", *["draw", "begin", "finish"] * 2, "finish"]


def test_the_reference_is_compared_with_itself_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(scorer(tmp_path), num_samples=12)
    found = few.score_reference()
    assert {len(values) for values in found.values()} == {distances.NUM_PARTS}
    monkeypatch.delattr(distances, "score_itself")
    assert few.score_reference() == found


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    drawn = SampleRange(WorkFolder(tmp_path), range(NUM_SAMPLES), SETTINGS.chunk_size)
    drawn.draw(STUDENT, SETTINGS, ALONE, lambda amount, status="", **options: None)
    path = tmp_path / drawn.chunks[1][0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WorkFailed, match=r"000000016\.npz: cannot be read .* delete it and run again"):
        drawn.extracted("pixels")


def test_a_result_of_another_version_is_made_again(tmp_path: Path) -> None:
    first = score(scorer(tmp_path), STUDENT)
    (file,) = tmp_path.rglob("range-0.json")
    file.write_text("{}")
    assert score(scorer(tmp_path), STUDENT).scores == first.scores


def test_first_samples_that_are_damaged_are_named_and_missing_ones_are_drawn_again(tmp_path: Path) -> None:
    work = scorer(tmp_path)
    before = score(work, TEACHER)
    (file,) = tmp_path.rglob("first.npy")
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(WorkFailed, match=r"first\.npy: cannot be read .* delete it and run again"):
        score(work, TEACHER)
    file.unlink()
    assert score(work, TEACHER).scores == before.scores
