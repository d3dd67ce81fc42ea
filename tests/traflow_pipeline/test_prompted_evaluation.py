"""A student of prompts beside its teacher on held-out ones: all stages on a tiny SD3 pipeline, killed and resumed."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from eval.config import EvaluateConfig
from eval.evaluate import evaluate
from eval.features.clip import load_clip
from eval.metrics import sample_chunks
from eval.results import Report, read_report
from pipeline.dataset import conditions
from pipeline.generation.chunk import ChunkEncoder
from pipeline.generation.generate import generate
from pipeline.storage.hashing import file_sha256
from pipeline.teachers.diffusers.encoder import PromptEncoder
from tests.support.clip import save_clip
from tests.support.command import assert_one_line, call
from tests.support.prompts import CPU, PROMPTS, prompted, write_prompts
from tests.support.runs import EVALUATION
from traflow_pipeline.loading import load_student, open_source
from trainer.config import TrainConfig
from trainer.train import train

HELD_OUT = ("a dog", "three cats in the snow", "fog", "a red bicycle", "<b>bold</b>")
GUIDANCE = 3.0


@pytest.fixture(scope="module")
def workplace(pipelines: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline's data, a student of them, held-out prompts and a CLIP model."""
    folder = tmp_path_factory.mktemp("prompted")
    generate(prompted(folder, pipelines("sd3"), n=16, guidance_scale=GUIDANCE))
    train_student(folder)
    write_prompts(folder, HELD_OUT, "held-out.txt")
    save_clip(folder / "clip")
    return folder


def train_student(folder: Path) -> None:
    trainer = {"num_steps": 2, "batch_size": 4, "log_every": 2, "schedule": "constant"}
    values: dict[str, Any] = {"data": str(folder / "data"), "out": folder / "run", "device": "cpu", "trainer": trainer}
    train(TrainConfig.model_validate(values | {"recipe": "trajectory", "lora": {"rank": 2}}))


def settings(workplace: Path, out: Path, **changes: Any) -> EvaluateConfig:
    own = {"num_samples": None, "steps": [1, 2, 4], "baselines": ["euler"], "num_ranges": 2, "batch_size": 2}
    given = {"prompts": str(workplace / "held-out.txt"), "clip": str(workplace / "clip")}
    places = {"checkpoint": str(workplace / "run"), "out": out}
    return EvaluateConfig.model_validate(EVALUATION | own | given | places | changes)


def scored(workplace: Path, out: Path, **changes: Any) -> Report:
    report = evaluate(settings(workplace, out, **changes))
    assert report is not None
    return report


@pytest.fixture(scope="module")
def report(workplace: Path) -> Report:
    return scored(workplace, workplace / "report")


def test_the_reference_is_the_teachers_own_samples_of_these_prompts(report: Report) -> None:
    assert (report.reference.source, report.reference.num_images, report.num_samples) == ("teacher", 5, 5)
    teacher, *others = report.rows
    assert set(teacher.scores) == {"clip-score"}
    assert teacher.rmse is None
    for row in others:
        assert {"fd-pixels", "clip-score"} <= row.scores.keys()
        assert not any("fid" in key or "kid" in key for key in row.scores)
    assert {"kd-pixels", "precision-pixels"} <= report.rows_of("student")[0].scores.keys()
    assert report.headline.heading == "Fréchet distance to teacher"


def test_a_sampler_that_is_the_teachers_own_is_at_no_distance_from_it(report: Report) -> None:
    (same,) = [row for row in report.rows_of("few-step") if row.sampler == "euler 2"]
    assert (same.rmse, same.latent_rmse) == (0, 0)
    assert same.scores["fd-pixels"].mean == pytest.approx(0, abs=1e-6)


def test_a_pipelines_own_times_are_among_its_baselines(report: Report) -> None:
    names = [row.sampler for row in report.rows_of("few-step")]
    assert names == ["euler 1", "euler 2", "euler 2, own grid", "euler 4", "euler 4, own grid"]


def test_figures_are_those_of_what_sample_draws_of_the_same_prompts(workplace: Path, report: Report) -> None:
    student = load_student(workplace / "run", device="cpu", prompts=HELD_OUT).sample(5, steps=2)
    source = str(read_report(workplace / "report").training.teacher)
    teacher = open_source(
        None, source, steps=2, solver="euler", guidance_scale=GUIDANCE, prompts=HELD_OUT, device="cpu"
    )
    (theirs,) = teacher.batches(range(5), seed=0)
    (row,) = [row for row in report.rows_of("student") if row.nfe == 2]
    assert row.latent_rmse == pytest.approx(np.sqrt(np.square(student.arrays - theirs.arrays).mean()), rel=1e-4)
    assert student.pixels is not None
    assert theirs.pixels is not None
    assert row.rmse == pytest.approx(np.sqrt(np.square(student.pixels - theirs.pixels).mean()), rel=1e-4)
    clip = load_clip(str(workplace / "clip"), CPU)
    images = student.images.transpose(0, 3, 1, 2)
    score = clip.score(clip.images.extract(images).features, clip.embed(HELD_OUT)[0])
    assert score > 0
    assert row.scores["clip-score"].values[0] == pytest.approx(score, rel=1e-4)


def test_the_report_says_which_prompts_and_the_page_shows_them(workplace: Path, report: Report) -> None:
    out, digest = workplace / "report", file_sha256(workplace / "held-out.txt")
    prompts = read_report(out).prompts
    assert prompts is not None
    assert (prompts.num_prompts, prompts.sha256, prompts.shown) == (5, digest, HELD_OUT)
    assert f"prompts: 5 held out, which take turns, given as {workplace}/held-out.txt, sha256 {digest}" in (
        (out / "report.md").read_text()
    )
    page = (out / "report.html").read_text()
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "<b>bold" not in page
    assert page.count('<img alt="student, 1 step: ') == 5
    assert "--prompt 'a red bicycle in the snow'" in (workplace / "run" / "MODEL_CARD.md").read_text()


def test_it_is_also_scored_along_the_trajectories_of_its_training(report: Report) -> None:
    assert report.trajectories is not None
    assert report.trajectories.seen_in_training
    assert report.trajectories.endpoint_rmse < 1


def test_an_evaluation_that_is_killed_anywhere_ends_as_one_that_is_not(
    workplace: Path, report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "CHUNK_ROWS", 2)
    monkeypatch.setattr(sample_chunks, "CHUNK_SAMPLES", 2)
    encoded, drawn = list[str](), list[str]()
    encode, draw = ChunkEncoder.encode, sample_chunks._draw_chunk

    def encoding(self: ChunkEncoder, chunk: Any) -> Any:
        encoded.append(chunk.name)
        return encode(self, chunk)

    def drawing(sampler: Any, settings: Any, indices: range, *arguments: Any, **options: Any) -> Any:
        drawn.append(f"{sampler.group} {sampler.name} {indices}")
        return draw(sampler, settings, indices, *arguments, **options)

    def dying(work: Callable[..., Any], calls: int) -> Callable[..., Any]:
        left = iter(range(calls))

        def die(*arguments: Any, **options: Any) -> Any:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return work(*arguments, **options)

        return die

    for calls in (0, 1):
        monkeypatch.setattr(ChunkEncoder, "encode", dying(encoding, calls))
        with pytest.raises(KeyboardInterrupt):
            scored(workplace, tmp_path / "out")
    monkeypatch.setattr(ChunkEncoder, "encode", encoding)
    for calls in (1, 8, 11):
        monkeypatch.setattr(sample_chunks, "_draw_chunk", dying(drawing, calls))
        with pytest.raises(KeyboardInterrupt):
            scored(workplace, tmp_path / "out")
    monkeypatch.setattr(sample_chunks, "_draw_chunk", drawing)
    found = scored(workplace, tmp_path / "out")
    assert encoded == [f"conditions-{number:06d}.safetensors" for number in range(3)]
    assert len(drawn) == len(set(drawn))
    assert [row.scores for row in found.rows] == [row.scores for row in report.rows]
    encoded.clear()
    drawn.clear()
    again = scored(workplace, tmp_path / "out", steps=[1, 2, 3, 4])
    assert (encoded, {name.rpartition(" r")[0] for name in drawn}) == (
        [],
        {"few-step euler 3", "few-step euler 3, own grid", "student 3 steps"},
    )
    assert len(again.rows_of("student")) == 4


def test_the_text_encoders_leave_memory_before_anything_is_drawn(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders: list[Any] = []
    begin = PromptEncoder.__init__

    def watched(self: PromptEncoder, *arguments: Any) -> None:
        begin(self, *arguments)
        encoders.append(weakref.ref(self._pipeline.text_encoder_3))

    def draw(*_: Any, **__: Any) -> NoReturn:
        assert [encoder() for encoder in encoders] == [None]
        raise KeyboardInterrupt

    monkeypatch.setattr(PromptEncoder, "__init__", watched)
    monkeypatch.setattr(sample_chunks, "_draw_chunk", draw)
    with pytest.raises(KeyboardInterrupt):
        scored(workplace, tmp_path / "out")


def test_without_clips_weights_or_the_trainings_data_the_report_says_so(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.evaluate.find_training_data", lambda folder, info: None)
    report = scored(workplace, tmp_path / "out", clip=None, steps=[1], baselines=[], num_ranges=1)
    (missing,) = [each for each in report.not_computed if each.metrics == ("clip-score",)]
    assert "--clip FOLDER names a folder of transformers' CLIPModel" in missing.reason
    assert "clip-score" not in report.rows[0].scores
    assert any("it was not checked that no prompt is among theirs" in text for text in report.warnings)


BAD_PROMPTS = {
    "none.txt": ([], "wanted prompts; it holds none"),
    "empty.txt": (["a dog", " "], "line 2: wanted a prompt; it is empty"),
    "twice.txt": (["a dog", "fog", "a dog"], "line 3: it repeats line 1"),
    "seen.txt": (["a dog", "A Cat", "rain "], "2 of its 3 are among the training's, the first is 'A Cat'"),
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_prompts_that_are_not_held_out_are_refused(workplace: Path, tmp_path: Path, name: str) -> None:
    prompts, said = BAD_PROMPTS[name]
    path = write_prompts(tmp_path, prompts, name)
    flags = [workplace / "run", "--out", tmp_path / "out", "--device", "cpu"]
    assert_one_line(call(tmp_path, "evaluate", *flags, "--prompts", path, code=2), name, said)
    assert not (tmp_path / "out").exists()


def test_what_an_evaluation_of_prompts_lacks_is_one_line(workplace: Path, tmp_path: Path) -> None:
    flags = ["evaluate", workplace / "run", "--out", tmp_path / "out", "--device", "cpu"]
    held_out = ["--prompts", workplace / "held-out.txt"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "bin" / "pytorch_model.bin").write_bytes(b"a pickle")
    for given, said in (
        ([], "draws from prompts: give --prompts FILE"),
        (["--prompts", "nowhere.txt"], "nowhere.txt: cannot be read"),
        (["--prompts", "nowhere.csv"], "wanted prompts in a .txt file"),
        ([*held_out, "--set", "teacher=none"], "prompts are encoded by a student's teacher"),
        (["--set", "teacher=none"], "leave teacher=none out"),
        ([*held_out, "--clip", tmp_path / "bin"], "wanted weights in .safetensors"),
        ([*held_out, "--clip", "nowhere"], "--clip nowhere: wanted a folder of transformers' CLIPModel"),
        (["--clip", "nowhere"], "wanted prompts too"),
    ):
        assert_one_line(call(tmp_path, *flags, *given, code=2), said)
    assert not (tmp_path / "out").exists()


def test_a_student_draws_the_prompts_that_it_is_given_in_turn(workplace: Path, tmp_path: Path) -> None:
    flags = ["sample", workplace / "run", "--device", "cpu", "--n", 3]
    call(tmp_path, *flags, "--prompt", "a dog", "--prompt", "fog", "--out", "two.npz")
    call(tmp_path, *flags, "--prompts", workplace / "held-out.txt", "--out", "file.npz")
    two, file = (np.load(tmp_path / name) for name in ("two.npz", "file.npz"))
    assert (two["labels"].tolist(), file["labels"].tolist()) == ([0, 1, 0], [0, 1, 2])
    np.testing.assert_array_equal(two["arr_0"][0], file["arr_0"][0])  # both "a dog"
    assert (two["arr_0"][1] != file["arr_0"][1]).any()
    for given, said in (
        (["--prompt", "a dog", "--prompts", "x.txt"], "wanted --prompt or --prompts, not both"),
        (["--prompt", " "], "--prompt 1: wanted a prompt; it is empty"),
        (["--guidance-scale", 2], "--guidance-scale is a teacher's"),
    ):
        assert_one_line(call(tmp_path, *flags, *given, code=2), said)


def test_a_folder_of_one_prompts_pictures_does_not_take_anothers(workplace: Path, tmp_path: Path) -> None:
    flags = ["sample", workplace / "run", "--device", "cpu", "--n", 1, "--out", "folder"]
    call(tmp_path, *flags, "--prompt", "a dog")
    assert_one_line(call(tmp_path, *flags, "--prompt", "fog", code=2), "holds other samples")


def test_the_trainings_own_prompts_are_drawn_without_any(workplace: Path) -> None:
    samples = load_student(workplace / "run", device="cpu").sample(len(PROMPTS))
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1, 2]
