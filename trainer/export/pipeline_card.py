"""The model card of a pipeline's student that the stock library loads."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Any

import yaml

from pipeline.networks.diffusers.network import DiffusersNetwork
from pipeline.teachers.diffusers.folder import HUB_NAME, PipelineFolder
from pipeline.teachers.loading import DIFFUSERS
from trainer.checkpoints.checkpoint import CheckpointInfo
from trainer.checkpoints.model import Model
from trainer.export.card import CITATIONS, NO_LICENCE, WHAT, front_matter, licence, recipe, short_name, title
from trainer.export.pipeline import ANY_STEP, ANY_STEPS, Written

TEXT = Template("""---
$front_matter
---

# $title

$what

$steps
$start
```python
$example
```

Recipe: $recipe. Teacher: `$teacher`, sha256 `$sha256`.

$figures## Licence

$licence

## Citation

```bibtex
$citation
```
""")
STEPS = Template(
    "It is exact in $num_steps evaluations on its own grid of times, and in no other number: within $error of the "
    "largest value of what the student draws itself."
)
FREE_STEPS = Template(
    "It draws in any number of steps by code of its own, `$network.py` and `$pipeline.py`: within $error of the "
    "largest value of what the student draws itself, in $compared evaluations."
)
START = Template(
    "\nThe stock pipeline starts from noise of standard deviation 1; the student was made for $ours of it, as its "
    "teacher's last noise level has it.\n"
)
WHOLE = """from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("."$trust)
image = pipeline($call).images[0]"""
LORA = """from diffusers import DiffusionPipeline, $scheduler

pipeline = DiffusionPipeline.from_pretrained("$teacher")
pipeline.scheduler = $scheduler.from_pretrained(".", subfolder="scheduler")
pipeline.load_lora_weights(".", weight_name="pytorch_lora_weights.safetensors")
image = pipeline($call).images[0]"""
OF_LICENCE = ("license", "license_name", "license_link")  # keys of a card's front matter


def pipeline_card(
    kind: str,
    network: DiffusersNetwork,
    model: Model,
    folder: PipelineFolder,
    num_steps: int | None,
    written: Written,
) -> str:
    """The card of the student `network` of the pipeline in `folder` as a `kind` that draws in `num_steps` steps."""
    info = model.info
    theirs = {key: value for key, value in _front_matter(folder.path).items() if key in OF_LICENCE}
    values = {
        "scheduler": written.scheduler.name,
        "teacher": _name(info),
        "call": ", ".join(_call(network, num_steps or ANY_STEPS[-1])),
        "trust": ", trust_remote_code=True" if kind == ANY_STEP else "",
    }
    terms = NO_LICENCE | theirs | ({"base_model": _name(info)} if HUB_NAME.fullmatch(_name(info)) else {})
    return TEXT.substitute(
        front_matter=front_matter(info.trains, "diffusers", [kind], unconditional=False, terms=terms),
        title=title(info.trains, info.teacher),
        what=WHAT["student"].substitute(kind="image"),
        steps=_steps(kind, num_steps, written),
        start=_start(network, written),
        example=Template(LORA if kind == "lora" else WHOLE).substitute(values),
        recipe=recipe(info.recipe, info.step),
        teacher=_name(info),
        sha256=info.teacher_sha256,
        figures="".join(_figures(model)),
        licence=_licence(info, theirs),
        citation=CITATIONS["student"],
    )


def _name(info: CheckpointInfo) -> str:
    """The teacher's name on the Hub, or the last part of its path."""
    name = (info.teacher or "").removeprefix(DIFFUSERS)
    return name if HUB_NAME.fullmatch(name) else short_name(info.teacher)


def _steps(kind: str, num_steps: int | None, written: Written) -> str:
    error = f"{written.error:.1e}"
    if kind != ANY_STEP:
        return STEPS.substitute(num_steps=num_steps, error=error)
    assert written.code is not None
    return FREE_STEPS.substitute(written.code._asdict(), compared=", ".join(map(str, ANY_STEPS)), error=error)


def _start(network: DiffusersNetwork, written: Written) -> str:
    """Where the pipeline starts from other noise than the student, what it does."""
    if written.scheduler.start == network.config.t_start or network.config.schedule is None:
        return ""
    return START.substitute(ours=f"{network.config.t_start / written.scheduler.start:.6g}")


def _call(network: DiffusersNetwork, num_steps: int) -> Iterator[str]:
    """The arguments of the example."""
    family = network.family
    if family.takes_prompts:
        yield '"a prompt"'
    elif family.num_classes:
        yield "class_labels=[0]"
    yield f"num_inference_steps={num_steps}"
    if family.takes_prompts or family.num_classes:
        scale = family.guidance if family.embeds_guidance else family.pipeline_guidance(1.0)
        yield f"{family.guidance_argument}={scale:g}"


def _front_matter(folder: Path) -> Mapping[str, Any]:
    """What the card in `folder` says to programs; nothing where there is no card that can be read."""
    try:
        _, text, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
        values = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def _licence(info: CheckpointInfo, theirs: Mapping[str, Any]) -> str:
    if "license" not in theirs:
        return licence(info.trains, info.teacher)
    said = theirs.get("license_name", theirs["license"])
    return (
        f"The student began as its teacher's weights, whose licence binds it: {said}, as the card of `{_name(info)}` "
        "says. See the licence files beside this card, if its folder had any."
    )


def licence_files(folder: PipelineFolder) -> list[Path]:
    """The texts of a pipeline's licence that lie in its folder."""
    return sorted(path for path in folder.path.glob("LICENSE*") if path.is_file())


def _figures(model: Model) -> Iterator[str]:
    """The student's figures of the evaluation that lies beside its training in a whole run, if it is of this step."""
    try:
        report = json.loads((model.folder.parents[2] / "report" / "metrics.json").read_bytes())
        if report["training"]["step"] != model.info.step:
            return
        headings = {metric["key"]: metric["heading"] for metric in report["metrics"]}
        rows = [row for row in report["rows"] if row["model"] == "student"]
        lines = [
            f"| {row['nfe']:g} | " + " | ".join(f"{row['scores'][key]['mean']:.4g}" for key in headings) + " |"
            for row in rows
        ]
        yield f"Of `traflow-pipeline evaluate`, {report['num_samples']:,} samples, {report['date']}:\n\n"
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return
    yield f"| evaluations | {' | '.join(headings.values())} |\n|{' --- |' * (len(headings) + 1)}\n"
    yield "\n".join(lines) + "\n\n"
