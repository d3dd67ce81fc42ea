import shutil

import pytest
import torch

from pipeline.common.errors import BadInput
from pipeline.teachers.compilation import check_compiler, compile_teacher
from pipeline.teachers.teacher import Teacher, of_network
from tests.support.problems import GaussianFlow, tiny_network

CPU = torch.device("cpu")


def tiny_teacher() -> Teacher:
    return of_network("tiny", "0" * 64, tiny_network(), CPU)


def test_a_cpu_compiles_only_when_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: asked.append(options))
    teacher = tiny_teacher()
    assert compile_teacher(teacher, CPU, "auto") is teacher
    assert compile_teacher(teacher, CPU, False) is teacher
    assert asked == []
    assert compile_teacher(teacher, CPU, True).compiled
    assert asked == [{"dynamic": False}]


def test_answers_of_cuda_graphs_are_kept_when_the_next_call_overwrites_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: asked.append(options))
    monkeypatch.setattr("pipeline.teachers.compilation.check_graphs", lambda device: None)
    buffer = torch.zeros(1, 1)

    def replay(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        return buffer.copy_(t[:, None])

    teacher = tiny_teacher()
    object.__setattr__(teacher, "velocity", replay)  # as the graph of a network that is its own velocity would be
    replayed = compile_teacher(teacher, CPU, "graphs")
    first, second = (replayed.velocity(torch.zeros(1, 1), torch.tensor([t]), None) for t in (0.25, 0.5))
    assert asked == [{"dynamic": False, "mode": "reduce-overhead"}]
    assert (first.item(), second.item(), replayed.compiled) == (0.25, 0.5, True)


def test_cuda_graphs_are_refused_without_a_gpu() -> None:
    with pytest.raises(BadInput, match="compile graphs: wanted a GPU, got a cpu: give compile auto, true or false"):
        compile_teacher(tiny_teacher(), CPU, "graphs")


def test_a_function_cannot_be_compiled() -> None:
    with pytest.raises(BadInput, match="compile: wanted a network of this program; teacher gaussian is a function"):
        compile_teacher(GaussianFlow().teacher(), CPU, True)


def test_a_machine_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BadInput, match=r"compile: wanted a C\+\+ compiler; there is none here: install it, or give"):
        check_compiler(CPU)
