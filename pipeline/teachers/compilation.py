"""Compile a teacher where that pays: on a GPU, for a network large enough."""

import importlib.util
import os
import shutil
from dataclasses import replace
from typing import Literal

import torch

from pipeline.common.errors import BadInput
from pipeline.networks import FlowNetwork, lay_out
from pipeline.teachers.teacher import OwnedVelocity, Teacher

# "graphs": compiled, and replayed as CUDA graphs, which saves the launches of kernels where they are many and small.
Compiled = Literal["graphs"] | bool

# Compiling takes half a minute: a smaller network is through with most data sets before that has paid.
MIN_PARAMETERS = 10_000_000


def compile_teacher(teacher: Teacher, device: torch.device, wanted: Compiled | Literal["auto"]) -> Teacher:
    """`teacher` with its network compiled for fixed shapes, if `wanted`; "auto" is where it `pays`.

    Replayed as CUDA graphs or not, the kernels and therefore the bits are the same.

    Raises:
        BadInput: True or "graphs" was wanted, and this teacher or this machine cannot.
    """
    if not (pays(teacher, device) if wanted == "auto" else wanted):
        return teacher
    if wanted == "graphs":
        check_graphs(device)
    network = lay_out(check_compilable(teacher, device), compiled=True)
    if wanted != "graphs":
        network.compile(dynamic=False)
        return replace(teacher, compiled=True)
    network.compile(dynamic=False, mode="reduce-overhead")
    # A graph answers into the same buffer every time, and solvers keep the answers of several stages.
    return replace(teacher, compiled=True, velocity=OwnedVelocity(teacher.velocity, teacher.name))


def check_compilable(teacher: Teacher, device: torch.device) -> FlowNetwork:
    """The network of `teacher`; raises `BadInput` unless it has one and this machine can compile it."""
    check_compiler(device)
    if not isinstance(teacher.network, FlowNetwork):
        kind = "a function of its own" if teacher.network is None else "a pipeline of diffusers"
        raise BadInput(
            f"compile: wanted a network of this program; teacher {teacher.name} is {kind}: give compile auto or false"
        )
    return teacher.network


def pays(teacher: Teacher, device: torch.device) -> bool:
    """Whether compiling `teacher` for `device` is possible and worth its half minute."""
    if device.type != "cuda" or not isinstance(teacher.network, FlowNetwork) or missing_compiler(device):
        return False
    return sum(parameter.numel() for parameter in teacher.network.parameters()) >= MIN_PARAMETERS


def check_compiler(device: torch.device) -> None:
    """Raises `BadInput` if this machine cannot compile for `device`."""
    if missing := missing_compiler(device):
        raise BadInput(f"compile: wanted {missing}; there is none here: install it, or give compile auto or false")


def check_graphs(device: torch.device) -> None:
    """Raises `BadInput` if `device` has no CUDA graphs."""
    if device.type != "cuda":
        raise BadInput(f"compile graphs: wanted a GPU, got a {device.type}: give compile auto, true or false")


def ways_to_run(device: torch.device) -> tuple[Compiled, ...]:
    """Every way to run a network on `device`, as it is first."""
    return (False, True, "graphs") if device.type == "cuda" else (False, True)


def missing_compiler(device: torch.device) -> str:
    """What this machine lacks to compile for `device`; empty if nothing."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton"
    names = (os.environ.get("CXX", "c++"), "g++", "clang++", "gcc", "cc")
    return "" if any(shutil.which(name) for name in names) else "a C++ compiler"
