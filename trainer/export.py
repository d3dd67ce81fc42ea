"""A trained network as one file for other programs, checked against torch, and a model card that says how to use it."""

import hashlib
import importlib.util
import io
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from pipeline import networks
from pipeline.errors import BadInput, WorkFailed
from pipeline.networks import Network
from pipeline.pictures import is_drawable
from pipeline.store import aside_of, one_line, reason, sync
from pipeline.teachers import catalogue
from trainer import checkpoint
from trainer.checkpoint import CheckpointInfo
from trainer.student import Student

CARD = "README.md"
TOLERANCE = 1e-4  # of the largest value, or of 1 where all are smaller
TRACED_BATCH = 2  # torch.export takes a dimension of 1 for a constant
CHECKED_BATCHES = (1, 5)
STEPS = {"student": (1, 2, 4), "teacher": (8, 16, 32)}  # of the card's example

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


def export(path: Path, kind: str, out: Path) -> Path:
    """Write the EMA network of the checkpoint or run at `path`, and its card, to the new folder `out`.

    `kind` is a key of `FORMATS`. `out` is there whole, or not at all. Returns the path of the network's file.

    Raises:
        BadInput: no such format, a package of it is missing, there is no checkpoint at `path`, or `out` is not empty.
        WorkFailed: it cannot be converted or written, or what was written does not answer as the network does.
    """
    form = _find_format(kind)
    _require_vacant(out)
    folder = checkpoint.find(path)
    info, network = checkpoint.read_info(folder), networks.load(folder / checkpoint.EMA)
    if network.config.second_time != (info.trains == "student"):
        raise BadInput(
            f"{folder}: wanted the network of a {info.trains}, as its checkpoint.json says; it is another one"
        )
    flow, name = ExportedFlow(network), info.trains + form.suffix
    aside = aside_of(out.absolute())
    try:
        aside.mkdir(parents=True)
        error = _convert(form, flow, info, aside / name)
        (aside / CARD).write_text(_card(kind, flow, info, aside / name, folder / checkpoint.EMA, error))
        for written in (*aside.iterdir(), aside):
            sync(written)
        aside.rename(out)
        sync(out.absolute().parent)
    except OSError as problem:
        raise WorkFailed(f"{out}: cannot be written ({reason(problem)}); nothing was kept") from problem
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return out / name


def _require_vacant(out: Path) -> None:
    try:
        vacant = not out.exists() or not any(out.iterdir())
    except OSError as error:
        raise BadInput(f"{out}: wanted a folder to make ({reason(error)}); choose another --out") from error
    if not vacant:
        raise BadInput(f"{out}: wanted a new or an empty folder; there are files in it: choose another --out")


def _convert(form: "Format", flow: ExportedFlow, info: CheckpointInfo, path: Path) -> float:
    """Write the file and return its difference to the network, which is at most `TOLERANCE`."""
    try:
        with _quiet():
            form.write(flow, flow.draw_inputs(TRACED_BATCH, info.t_start, info.t_end), path)
            error = _difference(form.load(path), flow, info)
    except OSError:
        raise
    except Exception as problem:  # exporters and runtimes raise whatever their compilers do
        text = one_line(_first_cause(problem))[:300]
        raise WorkFailed(f"{path.name}: the exporter failed ({text}); try --format safetensors") from problem
    if not error <= TOLERANCE:  # nor if it is not a number
        raise WorkFailed(
            f"{path.name}: wanted what torch computes, within {TOLERANCE:.0e}; it is {error:.1e} off and was not kept: "
            "try --format safetensors"
        )
    return error


def _difference(evaluate: Evaluate, flow: ExportedFlow, info: CheckpointInfo) -> float:
    """The largest between a file and the network, in units of the largest value or of 1."""
    worst = torch.zeros(())
    for batch_size in CHECKED_BATCHES:
        inputs = flow.draw_inputs(batch_size, info.t_start, info.t_end)
        wanted, found = flow(**inputs), evaluate(inputs)
        worst = torch.maximum(worst, (found - wanted).abs().max() / wanted.abs().max().clamp(min=1))
    return worst.item()


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters print, warn and log about their own affairs, which nobody can do anything about here."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _write_safetensors(flow: ExportedFlow, example: Inputs, path: Path) -> None:
    networks.save(path, flow.network)


def _load_safetensors(path: Path) -> Evaluate:
    flow = ExportedFlow(networks.load(path))
    return lambda inputs: flow(**inputs)


def _trace(flow: ExportedFlow, example: Inputs) -> torch.export.ExportedProgram:
    """The network as a graph of torch's operators that takes any batch."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(flow, (), example, dynamic_shapes={name: {0: batch} for name in example})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the paths of this machine, which are nobody's business
    return program


def _write_torch_export(flow: ExportedFlow, example: Inputs, path: Path) -> None:
    torch.export.save(_trace(flow, example), path)


def _load_torch_export(path: Path) -> Evaluate:
    module = torch.export.load(path).module()
    return lambda inputs: module(**inputs)


def _write_onnx(flow: ExportedFlow, example: Inputs, path: Path) -> None:
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


@dataclass(frozen=True)
class Format:
    """A kind of file: how a network is written to it and read back, and what the card says of it."""

    suffix: str
    packages: tuple[str, ...]  # that writing and checking it take
    write: Callable[[ExportedFlow, Inputs, Path], None]
    load: Callable[[Path], Evaluate]
    library: str  # that reads it, by its name on Hugging Face
    title: str
    note: str
    needs: str  # of the example
    imports: str
    opening: str  # defines a function of arrays by name


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
from trainer.export import ExportedFlow""",
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


def _find_format(kind: str) -> Format:
    if kind not in FORMATS:
        raise BadInput(f"--format: wanted one of {', '.join(FORMATS)}; got {kind!r}")
    missing = [name for name in FORMATS[kind].packages if importlib.util.find_spec(name) is None]
    if missing:
        raise BadInput(f"--format {kind} needs packages that are not installed: pip install {' '.join(missing)}")
    return FORMATS[kind]


CARD_TEXT = Template("""---
license: other
library_name: $library
${pipeline_tag}tags:
$tags
---

# $title

$what

| | |
|---|---|
$facts

$note

## Inputs and outputs

Any batch size B. Time t = 1 is noise, t = 0 is data; this flow runs from t = $t_start to t = $t_end.

| | type and shape | |
|---|---|---|
$signature

## Draw images

It takes $needs; run it where the file is.

```python
$example
```

## How it was made

By `traflow-pipeline train` with

```yaml
$config
```

## Licence

$licence

## Citation

```bibtex
$citation
```
""")

EXAMPLE = Template("""$imports

$opening


rng = np.random.default_rng(0)
noise = rng.standard_normal(($num_images, $shape), dtype=np.float32)
$draw_label

def draw(num_steps):
    \"\"\"$algorithm, on an even grid of times: num_steps evaluations.\"\"\"
    times = np.linspace($t_start, $t_end, num_steps + 1, dtype=np.float32)
    x = times[0] * noise
    for t, s in zip(times[:-1], times[1:]):
        x = $step
    return x


for num_steps in $steps:
    samples = draw(num_steps)  # [$num_images, $shape], data in [$low, $high]
    $save
""")

ALGORITHM = {"student": "TraFlow's Algorithm 1: x <- G(x, t, s)", "teacher": "Euler steps: x <- x + (s - t) v(x, t)"}

CITATIONS = {
    "student": """@article{wu2025traflow,
  title   = {TraFlow: Trajectory Distillation on Pre-Trained Rectified Flow},
  author  = {Wu, Zhangkai and Fan, Xuhui and Wu, Hongyu and Cao, Longbing},
  journal = {arXiv preprint arXiv:2502.16972},
  year    = {2025}
}""",
    "teacher": """@article{liu2022flow,
  title   = {Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow},
  author  = {Liu, Xingchao and Gong, Chengyue and Liu, Qiang},
  journal = {arXiv preprint arXiv:2209.03003},
  year    = {2022}
}""",
}


def _card(kind: str, flow: ExportedFlow, info: CheckpointInfo, path: Path, weights: Path, error: float) -> str:
    """The model card, in the manner of Hugging Face."""
    form = FORMATS[kind]
    unconditional = not flow.config.num_classes and is_drawable(flow.config.shape)
    return CARD_TEXT.substitute(
        library=form.library,
        pipeline_tag="pipeline_tag: unconditional-image-generation\n" if unconditional else "",
        tags="\n".join(f"- {tag}" for tag in _tags(kind, info)),
        title=_title(info),
        what=_what(info),
        facts=_facts(form, flow, info, path, weights, error),
        note=Template(form.note).substitute(file=path.name),
        t_start=info.t_start,
        t_end=info.t_end,
        signature=_signature(flow, info),
        needs=form.needs,
        example=_example(form, flow, info, path.name).strip(),
        config=yaml.safe_dump(info.config, sort_keys=False, allow_unicode=True).strip(),
        licence=_licence(info),
        citation=CITATIONS[info.trains],
    )


def _tags(kind: str, info: CheckpointInfo) -> list[str]:
    student = ["traflow", "distillation", "few-step-generation", "arxiv:2502.16972"]
    return [kind, "rectified-flow", "image-generation", *(student if info.trains == "student" else [])]


def _title(info: CheckpointInfo) -> str:
    if info.trains == "teacher":
        return "A rectified flow"
    return f"A few-step generator, distilled from {_teacher(info)}"


def _teacher(info: CheckpointInfo) -> str:
    """The teacher's name; of a path its end, since where it lay says nothing to others."""
    return Path(info.teacher or "unknown").name


def _what(info: CheckpointInfo) -> str:
    if info.trains == "teacher":
        return (
            "The velocity field v(x_t, t) of a flow from noise to images. Solving dx/dt = v from t_start down to t_end "
            "turns noise into an image."
        )
    return (
        "The flow map x_s = G(x_t, t, s) of a teacher's flow from noise to images: in one evaluation it jumps from the "
        "state at time t to the state at time s of the same trajectory. One jump from noise to data draws an image; "
        "two or four are meant to draw a better one."
    )


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _facts(form: Format, flow: ExportedFlow, info: CheckpointInfo, path: Path, weights: Path, error: float) -> str:
    guided = "" if info.guidance_scale == 1 else f", guidance scale {info.guidance_scale:g}"
    agreement = f"within {error:.1e} of the largest value" if error else "equal"
    facts = {
        "file": f"`{path.name}`: {form.title}; sha256 `{_sha256(path)}`",
        "weights": f"the average (EMA) after {info.step:,} steps; `{weights.name}` has sha256 `{_sha256(weights)}`",
        "parameters": f"{sum(parameter.numel() for parameter in flow.parameters()):,}",
        "network": f"{type(flow.network).__name__}, fp32",
        "teacher": f"`{_teacher(info)}`, sha256 `{info.teacher_sha256}`{guided}",
        "recipe": f"`{info.recipe}`, {info.step:,} steps",
        "training data": f"sha256 `{info.data_sha256}`" if info.data_sha256 else "not known",
        "checked": f"against torch on random inputs: {agreement}",
    }
    if info.trains == "teacher":
        del facts["teacher"]
    return _table(facts)


def _signature(flow: ExportedFlow, info: CheckpointInfo) -> str:
    """A row for each input and for the output."""
    shape = ", ".join(map(str, flow.config.shape))
    low, high = info.data_range
    rows = {
        "`x_t`": f"float32 [B, {shape}] | the state at time t; at the start, {info.t_start} times normal noise",
        "`t`": f"float32 [B] | from {info.t_start} down to {info.t_end}",
    }
    if info.trains == "student":
        rows["`s`"] = f"float32 [B] | the time to jump to, {info.t_end} <= s <= t"
    if flow.config.num_classes:
        rows["`label`"] = f"int64 [B] | the class, 0 to {flow.config.num_classes - 1}; -1: none"
    meaning = f"the state at time s; at s = {info.t_end} it is data, in [{low}, {high}]"
    meaning = meaning if info.trains == "student" else "dx/dt at time t"
    return _table({**rows, f"returns `{flow.output}`": f"float32 [B, {shape}] | {meaning}"})


def _example(form: Format, flow: ExportedFlow, info: CheckpointInfo, file: str) -> str:
    """A program that draws images with the file `file` beside it; only numbers of the checkpoint go into it."""
    config, (low, high) = flow.config, info.data_range
    symbol = "G" if info.trains == "student" else "v"
    arguments = ["x_t=x", "t=np.full(len(x), t)"]
    arguments += ["s=np.full(len(x), s)"] if info.trains == "student" else []
    arguments += ["label=label"] if config.num_classes else []
    call = f"{symbol}({', '.join(arguments)})"
    label = f"label = rng.integers({config.num_classes}, size=len(noise))  # a class for each; -1: none\n"
    drawable = is_drawable(config.shape)
    return EXAMPLE.substitute(
        imports=form.imports if drawable else form.imports.replace("\nfrom PIL import Image", ""),
        opening=Template(form.opening).substitute(file=file, symbol=symbol),
        num_images=16,
        shape=", ".join(map(str, config.shape)),
        draw_label=label if config.num_classes else "",
        algorithm=ALGORITHM[info.trains],
        t_start=info.t_start,
        t_end=info.t_end,
        step=call if info.trains == "student" else f"x + (s - t) * {call}",
        steps=STEPS[info.trains],
        low=low,
        high=high,
        save=_save_lines(config.image_channels, low, high)
        if drawable
        else 'np.save(f"{num_steps}-steps.npy", samples)',
    )


def _save_lines(num_channels: int, low: float, high: float) -> str:
    """Lines that put the `samples` in a row and save them as a picture."""
    scale = 255 / (high - low)
    row = "row[0]" if num_channels == 1 else "row.transpose(1, 2, 0)"
    lines = [
        f"pixels = np.clip(samples * {scale} + {0.5 - low * scale}, 0, 255).astype(np.uint8)",
        "row = np.concatenate(pixels, axis=-1)  # [C, H, 16 W]",
        f'Image.fromarray({row}).save(f"{{num_steps}}-steps.png")',
    ]
    return "\n    ".join(lines)


def _licence(info: CheckpointInfo) -> str:
    none_chosen = "None was chosen for this file: `license: other` above says so, until whoever publishes it decides."
    if info.trains == "teacher":
        return f"{none_chosen} The terms of the images it was trained on may bind it."
    known = catalogue.find(info.teacher) if info.teacher else None
    theirs = f" (`{known.name}`: {known.entry.licence})" if known and known.entry.licence else ""
    return (
        f"{none_chosen} The student learnt from its teacher's samples, and as a rule began as its weights: the licence "
        f"of the teacher's weights{theirs} may bind the student."
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
