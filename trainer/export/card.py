"""Model cards for Hugging Face: what every card says of a network, and the card beside an exported one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import yaml

from pipeline.common.image_grid import is_drawable
from pipeline.common.plural import counted
from pipeline.storage.hashing import file_sha256
from pipeline.teachers import catalogue
from trainer.checkpoints.checkpoint import CheckpointInfo
from trainer.distillation.student import FEW_STEPS
from trainer.export.formats import FORMATS, ExportedFlow, Format

WHAT = {
    "student": Template(
        "The flow map x_s = G(x_t, t, s) of a teacher's flow from noise to ${kind}s: one evaluation jumps from the "
        "state at time t to the state at time s of the same trajectory. Time 1 is noise, time 0 is an $kind."
    ),
    "teacher": Template(
        "The velocity v(x_t, t) of a flow from noise to ${kind}s. Solving dx/dt = v from time 1, noise, down to time 0 "
        "draws an $kind."
    ),
}
ONE_STEP = " Only the jump from noise to sample was trained: draw in one step, more steps make the samples worse."
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
NO_LICENCE = {"license": "other"}
STEPS = {"student": FEW_STEPS, "teacher": (8, 16, 32)}  # of the card's example
ALGORITHM = {"student": "TraFlow's Algorithm 1: x <- G(x, t, s)", "teacher": "Euler steps: x <- x + (s - t) v(x, t)"}
CARD_TEXT = Template("""---
$front_matter
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

## Draw samples

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
    \"\"\"$algorithm: num_steps evaluations.\"\"\"
    even = np.linspace(1, 0, num_steps + 1, dtype=np.float32)
    times = $t_end + ($t_start - $t_end) * $spacing
    x = times[0] * noise
    for t, s in zip(times[:-1], times[1:]):
        x = $step
    return x


for num_steps in $steps:
    samples = draw(num_steps)  # [$num_images, $shape], data in [$low, $high]
    $save
""")


def what(trains: str, of_images: bool) -> str:
    """What the network of a student or a teacher computes."""
    return WHAT[trains].substitute(kind="image" if of_images else "array")


def front_matter(
    trains: str,
    library: str,
    tags: Sequence[str] = (),
    unconditional: bool = True,
    of_images: bool = True,
    terms: Mapping[str, Any] = NO_LICENCE,
) -> str:
    """The YAML that Hugging Face reads. The licence is for whoever publishes the weights to choose."""
    student = ["traflow", "distillation", "few-step-generation", "arxiv:2502.16972"] if trains == "student" else []
    task = {"pipeline_tag": "unconditional-image-generation"} if unconditional else {}
    tags = [*tags, "rectified-flow", *(["image-generation"] if of_images else []), *student]
    return dump_yaml({**terms, "library_name": library, **task, "tags": tags})


def title(trains: str, teacher: str | None) -> str:
    """The heading of the card of a student of `teacher`, or of a trained teacher."""
    return "A rectified flow" if trains == "teacher" else f"A few-step generator, distilled from {short_name(teacher)}"


def short_name(teacher: str | None) -> str:
    """The teacher's name; of a path its last part, because the folder means nothing to others."""
    return Path(teacher or "an unnamed teacher").name


def recipe(name: str, num_steps: int) -> str:
    """The recipe and length of a training."""
    return f"{name}, {counted(num_steps, 'step')}"


def licence(trains: str, teacher: str | None) -> str:
    """What may bind whoever publishes a student of `teacher`, or a trained teacher."""
    none_chosen = 'None was chosen: "license: other" above says so, until whoever publishes these weights decides.'
    if trains == "teacher":
        return f"{none_chosen} The terms of the images it was trained on may bind it."
    known = catalogue.find(teacher) if teacher else None
    theirs = f" ({known.name}: {known.entry.licence})" if known and known.entry.licence else ""
    return (
        f"{none_chosen} The student learnt from its teacher's samples, and usually began as its weights: the licence "
        f"of the teacher's weights{theirs} may bind the student."
    )


def dump_yaml(value: Mapping[str, Any]) -> str:
    """`value` as YAML, in its own order."""
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True).strip()


def card_text(kind: str, flow: ExportedFlow, info: CheckpointInfo, path: Path, weights: Path, error: float) -> str:
    """The card of the exported file `path`, which differs by `error` from the network in the file `weights`."""
    form = FORMATS[kind]
    of_images = is_drawable(flow.config.shape)
    unconditional = not flow.config.num_classes and of_images
    return CARD_TEXT.substitute(
        front_matter=front_matter(info.trains, form.library, [kind], unconditional, of_images),
        title=title(info.trains, info.teacher),
        what=what(info.trains, of_images) + (ONE_STEP if is_one_step(info) else ""),
        facts=_facts(form, flow, info, path, weights, error),
        note=Template(form.note).substitute(file=path.name),
        t_start=info.t_start,
        t_end=info.t_end,
        signature=_signature(flow, info),
        needs=form.needs if of_images else form.needs.replace(" pillow", ""),
        example=_example(form, flow, info, path.name).strip(),
        config=dump_yaml(info.config),
        licence=licence(info.trains, info.teacher),
        citation=CITATIONS[info.trains],
    )


def is_one_step(info: CheckpointInfo) -> bool:
    """Whether the recipe trained one jump only, from noise to sample."""
    recipe = info.config.get("recipe")
    phases = recipe.get("phases", ()) if isinstance(recipe, dict) else ()
    return {term.get("loss") for phase in phases for term in phase.get("terms", ())} == {"output"}


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _facts(form: Format, flow: ExportedFlow, info: CheckpointInfo, path: Path, weights: Path, error: float) -> str:
    guided = "" if info.guidance_scale == 1 else f", guidance scale {info.guidance_scale:g}"
    agreement = f"within {error:.1e} of the largest value" if error else "equal"
    facts = {
        "file": f"`{path.name}`: {form.title}; sha256 `{file_sha256(path)}`",
        "weights": f"the average (EMA) after {counted(info.step, 'step')}; "
        f"`{weights.name}` has sha256 `{file_sha256(weights)}`",
        "parameters": f"{sum(parameter.numel() for parameter in flow.parameters()):,}",
        "network": f"{type(flow.network).__name__}, fp32",
        "teacher": f"`{short_name(info.teacher)}`, sha256 `{info.teacher_sha256}`{guided}",
        "recipe": recipe(info.recipe, info.step),
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
        only = "only this was trained" if is_one_step(info) else "<= s <= t"
        rows["`s`"] = f"float32 [B] | the time to jump to, {info.t_end} {only}"
    if flow.config.num_classes:
        none = "; -1: none" if flow.config.label_dropout else ""
        rows["`label`"] = f"int64 [B] | the class, 0 to {flow.config.num_classes - 1}{none}"
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
    label = f"label = rng.integers({config.num_classes}, size=len(noise))  # a class for each\n"
    drawable = is_drawable(config.shape)
    return EXAMPLE.substitute(
        imports=form.imports if drawable else form.imports.replace("\nfrom PIL import Image", ""),
        opening=Template(form.opening).substitute(file=file, symbol=symbol),
        num_images=16,
        shape=", ".join(map(str, config.shape)),
        draw_label=label if config.num_classes else "",
        algorithm=ALGORITHM[info.trains],
        spacing=_spacing(info.step_shift),
        t_start=info.t_start,
        t_end=info.t_end,
        step=call if info.trains == "student" else f"x + (s - t) * {call}",
        steps=(1,) if is_one_step(info) else STEPS[info.trains],
        low=low,
        high=high,
        save=_save_lines(config.shape[0], low, high) if drawable else 'np.save(f"{num_steps}-steps.npy", samples)',
    )


def _spacing(shift: float) -> str:
    """`path.shifted` of the example's even times, as an expression."""
    return "even" if shift == 1 else f"{shift:g} * even / (1 + {shift - 1:g} * even)"


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
