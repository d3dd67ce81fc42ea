"""What a stock pipeline hands to its scheduler is what our teacher of it computes, for every family."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.flow.numerics import Precision, in_precision
from pipeline.networks.diffusers.network import DiffusersNetwork
from pipeline.teachers.diffusers.self_check import largest_difference
from tests.support.pipelines import BUILDERS, SIZES
from tests.support.prompts import conditions_of, load_unchecked, source_of

GUIDED = sorted(BUILDERS.keys() - {"ddpm", "flux-schnell"})


def difference(folder: Path, workplace: Path, guidance_scale: float) -> float:
    source = source_of(folder)
    teacher = load_unchecked(source, conditions_of(source, workplace), guidance_scale)
    return largest_difference(source.folder, teacher, guidance_scale)


def tolerance(name: str) -> float:
    return 2e-5 if name == "z-image" else 1e-5


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_our_velocity_is_what_the_pipeline_integrates(
    name: str, pipelines: Callable[[str], Path], tmp_path: Path
) -> None:
    assert difference(pipelines(name), tmp_path, 1.0) < tolerance(name)


@pytest.mark.parametrize("name", GUIDED)
def test_our_guided_velocity_is_what_the_pipeline_integrates(
    name: str, pipelines: Callable[[str], Path], tmp_path: Path
) -> None:
    assert difference(pipelines(name), tmp_path, 4.0) < tolerance(name)


def test_another_velocity_is_noticed(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    source = source_of(pipelines("sd3"))
    teacher = load_unchecked(source, conditions_of(source, tmp_path))
    assert largest_difference(source.folder, teacher, 4.0) > 0.01, "the teacher is not guided, the pipeline is"


def test_a_teacher_in_bf16_sees_every_time(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    source = source_of(pipelines("flux-dev"))
    network = load_unchecked(source, conditions_of(source, tmp_path)).network
    assert isinstance(network, DiffusersNetwork)
    x, label = torch.randn(2, *network.config.shape), torch.zeros(2, dtype=torch.int64)
    times = torch.tensor([0.75, 0.7501])
    embedded: list[Tensor] = []
    network.embedders[0].register_forward_hook(lambda _, inputs, output: embedded.append(output))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        network(x[:1].expand(2, -1, -1, -1), times, label=label)
    assert not torch.equal(embedded[0][0], embedded[0][1]), "bf16 would round both times to 0.75"


@pytest.mark.parametrize("name", ["dit", "sd3", "flux-dev", "sana", "lumina2", "auraflow", "z-image", "qwen-image"])
def test_a_transformer_held_in_bf16_computes_what_a_cast_one_does(
    name: str, pipelines: Callable[[str], Path], tmp_path: Path
) -> None:
    source = source_of(pipelines(name))
    conditions, size, found = conditions_of(source, tmp_path), SIZES.get(name), []
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in precisions:
        teacher = source.load(size=size, conditions=conditions, precision=precision)
        assert teacher.network is not None
        held = torch.bfloat16 if precision == "bf16" else torch.float32
        assert {parameter.dtype for parameter in teacher.network.parameters()} == {held}
        x = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(0))
        label = torch.tensor([0, 1]) if teacher.num_classes else None
        with torch.no_grad():
            found.append(in_precision(teacher.velocity, "bf16")(x, torch.tensor([0.75, 0.3]), label))
    assert float((found[0] - found[1]).abs().max() / found[0].abs().max()) < 0.15  # a normalisation may round earlier
