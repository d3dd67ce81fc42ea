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


def test_a_function_cannot_be_compiled() -> None:
    with pytest.raises(BadInput, match="compile: wanted a network of this program; teacher gaussian is a function"):
        compile_teacher(GaussianFlow().teacher(), CPU, True)


def test_a_machine_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BadInput, match=r"compile: wanted a C\+\+ compiler; there is none here: install it, or give"):
        check_compiler(CPU)
