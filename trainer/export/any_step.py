"""A pipeline's student in any number of steps: the code of a network class and of a pipeline for the export.

The stock pipeline tells its network the time that a step starts at. The class counts from it, and from the number of
steps that the pipeline's own class sets, the time that the step goes to, and embeds both.
"""

import importlib.util
import inspect
import json
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import torch

from pipeline.flow.path import shifted
from pipeline.networks.diffusers import times
from pipeline.networks.diffusers.family import Family
from pipeline.networks.diffusers.weights import files_sha256
from pipeline.teachers.diffusers.folder import read_json

NETWORK = Template('''

import functools
import inspect

import diffusers


class $network(diffusers.$stock):
    """A few-step student, a $stock that also embeds the time that a step goes to, of `num_steps` steps."""

    num_steps = 4

    @functools.wraps(diffusers.$stock.__init__)
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        for embedder in wrap_embedders(self):
            embedder.add_second_time()

    def forward(self, *arguments, **options):
        told = inspect.signature(super().forward).bind(*arguments, **options).arguments["$argument"]
        t = (told.float() - $told_offset) / $told_scale
        step = (t / ($shift - ($shift - 1) * t) * self.num_steps).round()
        t, s = self.time_of(step), self.time_of(step - 1)
        for module in self.modules():
            if isinstance(module, TimeEmbedder):
                module.tell($clock_scale * t + $clock_offset, $clock_scale * s + $clock_offset)
        return super().forward(*arguments, **options)

    def time_of(self, step):
        """The time of the `step`, counted from the data: an even one, moved towards the noise."""
        t = step / self.num_steps
        return $shift * t / (1 + ($shift - 1) * t)
''')
PIPELINE = Template('''"""A $pipeline whose network knows the number of steps."""

import diffusers


class $name(diffusers.$pipeline):
    """Draws in any number of steps, `num_inference_steps`."""

    def __call__(self, *arguments, num_inference_steps=4, **options):
        self.$part.num_steps = num_inference_steps
        return super().__call__(*arguments, num_inference_steps=num_inference_steps, **options)
''')


class Told(NamedTuple):
    """What a pipeline tells its network: the argument's name, and scale and offset of its value by the time."""

    argument: str
    scale: float
    offset: float


def told_by(pipeline: Any, network: torch.nn.Module, shift: float, **call: Any) -> Told:
    """What the stock `pipeline` tells `network` in two steps, at the time 1 and where they meet after `shift`."""
    seen: list[tuple[str, float]] = []
    signature = inspect.signature(network.forward)

    def look(_: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        given = signature.bind(*arguments, **options).arguments
        name = "timestep" if "timestep" in given else "t"
        seen.append((name, float(given[name].flatten()[0])))

    hook = network.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with torch.no_grad():
            pipeline(**call)
    finally:
        hook.remove()
    (name, at_one), (_, at_middle) = seen
    scale = (at_one - at_middle) / (1 - shifted(0.5, shift))
    return Told(name, scale, at_one - scale)


class Code(NamedTuple):
    """The two modules of an export; their names have a digest, because diffusers keeps modules by their names alone."""

    network: str
    pipeline: str
    network_class: str
    pipeline_class: str


def write_code(out: Path, family: Family, pipeline: str, told: Told, shift: float) -> Code:
    """Write the modules of the export in `out`, whose network is saved there, and name them in its configurations."""
    part = family.folder
    start, end = (float(family.clock(torch.tensor([t]))) for t in (0.0, 1.0))
    mark = files_sha256(out / part)[:12]
    code = Code(f"flow_map_{mark}", f"pipeline_{mark}", f"FlowMap{family.network}", f"FlowMap{pipeline}")
    network = inspect.getsource(times) + NETWORK.substitute(
        network=code.network_class,
        stock=family.network,
        argument=told.argument,
        told_scale=told.scale,
        told_offset=told.offset,
        clock_scale=end - start,
        clock_offset=start,
        shift=shift,
    )
    (out / part / f"{code.network}.py").write_text(network)
    (out / f"{code.pipeline}.py").write_text(
        PIPELINE.substitute(name=code.pipeline_class, pipeline=pipeline, part=part)
    )
    config = read_json(out / part / "config.json") | {
        "_class_name": code.network_class,
        "auto_map": {"AutoModel": f"{code.network}.{code.network_class}"},
    }
    (out / part / "config.json").write_text(json.dumps(config, indent=2))
    return code


def load_network(out: Path, part: str, code: Code) -> Any:
    """The network of an export, by its own class, without the copy of its code that diffusers keeps in its cache."""
    spec = importlib.util.spec_from_file_location(code.network, out / part / f"{code.network}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = getattr(module, code.network_class).from_pretrained(out / part, torch_dtype=torch.float32)
    return network.eval()
