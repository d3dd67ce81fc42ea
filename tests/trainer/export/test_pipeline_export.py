"""A pipeline's student as a stock pipeline and as a LoRA: what they draw is Algorithm 1, on their grid."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.common.errors import BadInput
from pipeline.networks.diffusers.adapter import AdapterConfig
from pipeline.networks.diffusers.family import pack
from pipeline.networks.diffusers.fold import balanced
from pipeline.networks.diffusers.network import DiffusersNetwork
from pipeline.networks.diffusers.weights import load_weights
from pipeline.teachers.diffusers.stock import assemble, call_arguments
from tests.support import draw_exports
from tests.support.pipelines import SD_SCHEDULE, sd
from tests.support.prompts import conditions_of, load_unchecked, source_of
from trainer.checkpoints.checkpoint import CheckpointInfo
from trainer.checkpoints.model import Model
from trainer.distillation.student import from_pipeline
from trainer.export import pipeline
from trainer.export.exporter import export
from trainer.export.pipeline import Written, write_any_step, write_lora, write_pipeline
from trainer.export.schedulers import candidates

FLOWS = ["sd3", "flux-dev", "sana", "lumina2", "auraflow", "z-image", "qwen-image"]
NOISE = ["ddpm", "dit", "sd", "sd-v", "sdxl"]
WITHOUT_LORA = ("ddpm", "dit")
WITHOUT_TEXT = {"text_encoder": None, "tokenizer": None}  # of the tiny Qwen-Image
STEPS = (1, 2, 4, 8)
LORA = AdapterConfig(rank=2, alpha=3)
CASES = [
    *((name, "diffusers", n) for name in (*FLOWS, *NOISE) for n in STEPS),
    *((name, "lora", n) for name in ("sd3", "sdxl") for n in STEPS[:-1]),
    *((name, "lora", STEPS[-1]) for name in (*FLOWS, *NOISE) if name not in WITHOUT_LORA),
    *(("sd3", "any-step", n) for n in STEPS),
]
QUICK = ("sd3", "dit")  # a flow and a model that predicts noise; the other families take minutes


def student_of(
    folder: Path, workplace: Path, adapter: AdapterConfig | None, shift: float = 1.0
) -> tuple[Model, DiffusersNetwork]:
    """A student far from its start, whose steps are even after `shift`, and its description."""
    source = source_of(folder)
    network = load_unchecked(source, conditions_of(source, workplace)).network
    assert isinstance(network, DiffusersNetwork)
    from_pipeline(network, adapter, source.base_weights)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            scale = 0.5 if name.endswith("gate") else 0.05
            parameter.data += scale * torch.randn(parameter.shape, generator=generator)
    info = CheckpointInfo(
        step=1, trains="student", recipe="trajectory", teacher=source.text, config={}, step_shift=shift
    )
    network.requires_grad_(False)
    return Model(workplace / "ema.safetensors", info), network


def samples_of(model: Model, network: DiffusersNetwork, steps: int) -> dict[str, Tensor]:
    """What Algorithm 1 draws from where each scheduler starts, as the pipeline has it."""
    times = pipeline._times(model, network, steps)
    drawn = {
        each.name: pipeline._algorithm_1(network, times, each.start)
        for each in candidates(network, times, model.info.step_shift)
    }
    return {name: pack(x) if network.family.is_packed else x for name, x in drawn.items()}


def order(case: str, teacher: Path, network: DiffusersNetwork, out: Path, steps: int, written: Written) -> str:
    """What `draw_exports` takes to draw label 0 from the export in `out`."""
    folder, is_lora = source_of(teacher).folder, (out / pipeline.LORA_FILE).exists()
    weights = load_weights(folder.family.network, folder.path / folder.family.folder)
    stock = assemble(folder, weights, written.scheduler.make())
    call = call_arguments(stock, network, pipeline._own_guidance(network), steps)
    call.pop("generator")
    if "latents" in inspect.signature(type(stock).__call__).parameters:
        noise = pipeline._noise(network)
        call["latents"] = pack(noise) if network.family.is_packed else noise
    lists = {key: value for key, value in call.items() if isinstance(value, list) and isinstance(value[0], Tensor)}
    tensors = {key: value for key, value in call.items() if isinstance(value, Tensor)}
    tensors |= {key: torch.stack(value) for key, value in lists.items()}
    save_file({key: value.contiguous() for key, value in tensors.items()}, out / "arguments.safetensors")
    values: dict[str, Any] = {
        "name": case,
        "pipeline": str(teacher if is_lora else out),
        "options": ({"trust_remote_code": True} if written.code else {})
        | (WITHOUT_TEXT if network.family.takes_prompts and not folder.text_parts else {}),
        "lora": str(out) if is_lora else None,
        "scheduler": written.scheduler.name,
        "arguments": str(out / "arguments.safetensors") if tensors else None,
        "lists": list(lists),
        "call": {key: value for key, value in call.items() if key not in tensors},
    }
    return json.dumps(values)


@pytest.fixture(scope="module")
def errors(
    pipelines: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[bool], dict[str, float]]:
    """By case, how far what one fresh process draws from the exports, quick or not, is from Algorithm 1."""

    @cache
    def measure(are_quick: bool) -> dict[str, float]:
        folder, wanted, orders = tmp_path_factory.mktemp("exports"), {}, []
        for name, kind, steps in [case for case in CASES if (case[0] in QUICK) == are_quick]:
            case = f"{name} {kind} {steps}"
            (out := folder / case).mkdir()
            is_shifted = kind != "diffusers" or steps == 4
            adapter = None if kind == "diffusers" else LORA
            model, network = student_of(pipelines(name), folder, adapter, 2.0 if is_shifted else 1.0)
            samples = samples_of(model, network, steps)
            written = pipeline.write(kind, model, network, steps, out)
            wanted[case] = samples[written.scheduler.name]
            orders.append(order(case, pipelines(name), network, out, steps, written))
        (folder / "orders.jsonl").write_text("\n".join(orders))
        command = [sys.executable, draw_exports.__file__, str(folder)]
        subprocess.run(command, env=os.environ | {"HF_HOME": str(folder / "cache")}, check=True)
        drawn = load_file(folder / "drawn.safetensors")
        return {
            case: float((drawn[case].reshape(x.shape) - x).abs().max() / x.abs().max()) for case, x in wanted.items()
        }

    return measure


@pytest.mark.parametrize(
    ("name", "kind", "steps"),
    [pytest.param(*case, marks=() if case[0] in QUICK else pytest.mark.cluster) for case in CASES],
)
def test_a_fresh_process_draws_from_an_export_what_algorithm_1_draws(
    name: str, kind: str, steps: int, errors: Callable[[bool], dict[str, float]]
) -> None:
    error = errors(name in QUICK)[f"{name} {kind} {steps}"]
    print(f"{name} {kind} {steps}: {error:.1e}")
    assert error < (2e-5 if name == "z-image" else 1e-5)  # as in the parity of its velocity


def test_a_stock_pipeline_has_the_adapter_in_its_weights(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    model, network = student_of(pipelines("sd3"), tmp_path, LORA)
    assert write_pipeline(model, network, 4, tmp_path).error < 1e-5


@pytest.mark.parametrize("name", ["flux-dev", "sana", "lumina2", "auraflow", "z-image", "qwen-image"])
def test_a_pipeline_with_code_of_its_own_draws_in_any_number_of_steps(
    name: str, pipelines: Callable[[str], Path], tmp_path: Path
) -> None:
    model, network = student_of(pipelines(name), tmp_path, None)
    error = write_any_step(model, network, tmp_path).error
    print(f"{name} any-step: {error:.1e}")
    assert error < 1e-5


@pytest.mark.parametrize(
    ("kind", "num_steps", "message"),
    [
        ("diffusers", None, "wanted --steps N"),
        ("safetensors", 2, "--steps is for --format diffusers and lora"),
        ("any-step", 2, "any-step takes any number: leave it out"),
    ],
)
def test_steps_are_for_the_formats_that_take_them(
    kind: str, num_steps: int | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=message):
        export(tmp_path, kind, tmp_path / "out", num_steps)


def test_what_cannot_be_exact_is_refused(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    model, network = student_of(pipelines("sd3"), tmp_path, None)
    with pytest.raises(BadInput, match="all its weights were: take diffusers"):
        write_lora(model, network, 2, tmp_path)
    with pytest.raises(BadInput, match="the width of its timestep embedder"):
        write_pipeline(model, network, 10_000, tmp_path)
    model, network = student_of(pipelines("dit"), tmp_path, LORA)
    with pytest.raises(BadInput, match="a DiTPipeline loads no LoRA: take diffusers"):
        write_lora(model, network, 2, tmp_path)
    with pytest.raises(BadInput, match="take --format diffusers --steps N"):
        write_any_step(model, network, tmp_path)


def test_balanced_factors_have_the_same_product() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((4, 10), (7, 4)))
    a[1] = -a[0] * 1e9  # which cancel
    less, more = balanced(a, b)
    torch.testing.assert_close(more @ less, b @ a)
    torch.testing.assert_close(less.norm(dim=1), more.norm(dim=0))


def test_the_card_names_the_teacher_its_licence_and_the_figures(
    pipelines: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(pipelines("ddpm"), teacher)
    (teacher / "README.md").write_text("---\nlicense: openrail\nlicense_name: theirs\n---\nA model.\n")
    (teacher / "LICENSE.txt").write_text("Their terms.")
    model, network = student_of(teacher, tmp_path, None)
    folder = tmp_path / "run" / "train" / "checkpoints" / "step-000001"
    folder.mkdir(parents=True)
    report = {
        "training": {"step": 1},
        "metrics": [{"key": "fid", "heading": "FID"}],
        "rows": [{"model": "student", "nfe": 2, "scores": {"fid": {"mean": 12.5}}}],
        "num_samples": 50_000,
        "date": "today",
    }
    (tmp_path / "run" / "report").mkdir()
    (tmp_path / "run" / "report" / "metrics.json").write_text(json.dumps(report))
    found = replace(model, weights=folder / "ema.safetensors")
    monkeypatch.setattr("trainer.export.exporter.find_model", lambda _: found)
    monkeypatch.setattr(Model, "load", lambda _: network)
    export("run", "diffusers", tmp_path / "out", 2)
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (
        "license: openrail",
        "`teacher`",
        "binds it: theirs",
        "| 2 | 12.5 |",
        "num_inference_steps=2",
        "trajectory",
    ):
        assert text in card
    assert "starts from noise of standard deviation 1" in card
    assert (tmp_path / "out" / "LICENSE.txt").read_text() == "Their terms."


def test_a_schedule_that_ends_in_pure_noise_is_exact_by_ddim(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = sd()
    settings = SD_SCHEDULE | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    teacher.scheduler = diffusers.DDIMScheduler(steps_offset=1, clip_sample=False, **settings)
    teacher.save_pretrained(tmp_path / "teacher")
    model, network = student_of(tmp_path / "teacher", tmp_path, None)
    assert network.config.t_start == 1
    written = write_pipeline(model, network, 2, tmp_path)
    assert written.scheduler.name == "DDIMScheduler"
    assert written.error < 1e-5
