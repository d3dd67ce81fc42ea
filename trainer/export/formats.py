"""The file formats of an export: how each is written and loaded again."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import networks
from pipeline.common.errors import BadInput
from pipeline.common.suggestions import suggest
from pipeline.networks import Network
from trainer.checkpoints.checkpoint import CheckpointInfo
from trainer.checkpoints.model import save_described
from trainer.distillation.student import Student

Inputs = dict[str, Tensor]
Evaluate = Callable[[Inputs], Tensor]


class ExportedFlow(nn.Module):
    """What is exported, its inputs by name: a student's x_s = G(x_t, t, s), or a teacher's velocity v(x_t, t).

    x_t float32 [B, C, H, W]; t and s float32 [B], t_end <= s <= t <= t_start, s for a student only; label int64 [B] in
    -1 (none) to num_classes - 1, for a class-conditional network only. Any B. Returns float32 [B, C, H, W].
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        # Not channels-last: torch.export.save takes such a weight for a part of a larger one.
        network = network.float().requires_grad_(False).eval().to(memory_format=torch.contiguous_format)
        self.config = network.config
        self.flow = Student(network) if self.config.second_time else network

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        out: Tensor = self.flow(x_t, t, s, label)
        return out

    @property
    def network(self) -> Network:
        return self.flow.network if isinstance(self.flow, Student) else self.flow

    @property
    def output(self) -> str:
        """The name of what `forward` returns."""
        return "x_s" if self.config.second_time else "velocity"

    def draw_inputs(self, batch_size: int, t_start: float, t_end: float) -> Inputs:
        """Random inputs, always the same: x_t standard normal, times and labels uniform in their ranges."""
        generator = torch.Generator().manual_seed(0)
        config, size = self.config, (batch_size,)
        t = t_end + (t_start - t_end) * torch.rand(size, generator=generator)
        inputs = {"x_t": torch.randn(*size, *config.shape, generator=generator), "t": t}
        if config.second_time:
            inputs["s"] = t_end + (t - t_end) * torch.rand(size, generator=generator)
        if config.num_classes:
            inputs["label"] = torch.randint(-1, config.num_classes, size, generator=generator)
        return inputs


@dataclass(frozen=True)
class Format:
    """A kind of file: how a network is written to it and read back, and what the card says of it."""

    suffix: str
    packages: tuple[str, ...]  # that writing and checking it take
    write: Callable[[ExportedFlow, Inputs, Path, CheckpointInfo], None]
    load: Callable[[Path], Evaluate]
    library: str  # that reads it, by its name on Hugging Face
    title: str
    note: str
    needs: str  # of the example
    imports: str
    opening: str  # defines a function of arrays by name


def _write_safetensors(flow: ExportedFlow, example: Inputs, path: Path, info: CheckpointInfo) -> None:
    save_described(path, flow.network, info)


def _load_safetensors(path: Path) -> Evaluate:
    flow = ExportedFlow(networks.load(path))
    return lambda inputs: flow(**inputs)


def _trace(flow: ExportedFlow, example: Inputs) -> torch.export.ExportedProgram:
    """The network as a graph of torch's operators that takes any batch."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(flow, (), example, dynamic_shapes={name: {0: batch} for name in example})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it holds paths of this machine
    return program


def _write_torch_export(flow: ExportedFlow, example: Inputs, path: Path, info: CheckpointInfo) -> None:
    torch.export.save(_trace(flow, example), path)


def _load_torch_export(path: Path) -> Evaluate:
    module = torch.export.load(path).module()
    return lambda inputs: module(**inputs)


def _write_onnx(flow: ExportedFlow, example: Inputs, path: Path, info: CheckpointInfo) -> None:
    from onnxscript import opset20 as op

    def hypot(a: Any, b: Any) -> Any:  # the exporter knows none; these are of times, so that no square overflows
        return op.Sqrt(op.Add(op.Mul(a, a), op.Mul(b, b)))

    exported = torch.onnx.export(
        _trace(flow, example),
        kwargs=example,
        dynamic_shapes={name: {0: "batch"} for name in example},
        output_names=[flow.output],
        opset_version=20,
        custom_translation_table={torch.ops.aten.hypot.default: hypot},
        verbose=False,
    )
    assert exported is not None
    exported.save(path)  # weights of more than 1.5 GiB go into a second file, because no ONNX file may have 2 GiB


def _load_onnx(path: Path) -> Evaluate:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it writes its warnings past Python
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def evaluate(inputs: Inputs) -> Tensor:
        return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])

    return evaluate


# Both calls take and return torch tensors.
TORCH_CALL = """
def $symbol(**inputs):
    return model(**{name: torch.from_numpy(value) for name, value in inputs.items()}).numpy()"""

FORMATS: dict[str, Format] = {
    "safetensors": Format(
        suffix=".safetensors",
        packages=(),
        write=_write_safetensors,
        load=_load_safetensors,
        library="traflow-pipeline",
        title="safetensors, fp32, the network's configuration in the metadata",
        note="The file holds data only; nothing in it is executed.",
        needs="`traflow-pipeline`, whose code the network is",
        imports="""
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline import networks
from trainer.export.formats import ExportedFlow""",
        opening='model = ExportedFlow(networks.load(Path("$file")))\n\n' + TORCH_CALL,
    ),
    "onnx": Format(
        suffix=".onnx",
        packages=("onnx", "onnxscript", "onnxruntime"),
        write=_write_onnx,
        load=_load_onnx,
        library="onnx",
        title="ONNX, opset 20, fp32",
        note="A graph of standard operators; no code of this program is needed. Weights of more than 1.5 GiB lie "
        "in a second file, `$file.data`.",
        needs="`pip install numpy onnxruntime pillow`",
        imports="""
import numpy as np
import onnxruntime
from PIL import Image""",
        opening="""session = onnxruntime.InferenceSession("$file")


def $symbol(**inputs):
    return session.run(None, inputs)[0]""",
    ),
    "torch-export": Format(
        suffix=".pt2",
        packages=(),
        write=_write_torch_export,
        load=_load_torch_export,
        library="pytorch",
        title=f"torch.export, fp32, written by torch {torch.__version__.partition('+')[0]}",
        note="No code of this program is needed. **`torch.export.load` unpickles parts of its file, and a pickle can "
        "run any program: load a `.pt2` file only from people you trust.** The graph was traced on the CPU; "
        "`torch.export.passes.move_to_device_pass` moves it to another device.",
        needs="`pip install numpy pillow torch`",
        imports="""
import numpy as np
import torch
from PIL import Image""",
        opening='model = torch.export.load("$file").module()\n\n' + TORCH_CALL,
    ),
}


def find_format(kind: str) -> Format:
    """The format `kind`.

    Raises:
        BadInput: no such format, or a package of it is missing.
    """
    if kind not in FORMATS:
        raise BadInput(f"--format: wanted one of {', '.join(FORMATS)}; got {kind!r}{suggest(kind, FORMATS)}")
    missing = [name for name in FORMATS[kind].packages if importlib.util.find_spec(name) is None]
    if missing:
        raise BadInput(f"--format {kind} needs packages that are not installed: pip install {' '.join(missing)}")
    return FORMATS[kind]
