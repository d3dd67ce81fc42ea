"""The model card of a pipeline's student that the stock library loads."""

from string import Template

from pipeline.networks.diffusers.network import DiffusersNetwork
from trainer.checkpoints.checkpoint import CheckpointInfo
from trainer.export.card import CITATIONS, WHAT, front_matter, licence, recipe, short_name, title

TEXT = Template("""---
$front_matter
---

# $title

$what

It is exact in $num_steps evaluations on an even grid of times, and in no other number: within $error of the largest
value of what the student draws itself.

```python
$example
```

Recipe: $recipe. Teacher: `$teacher`, sha256 `$sha256`.

## Licence

$licence

## Citation

```bibtex
$citation
```
""")
WHOLE = """from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained(".")
image = pipeline("a prompt", num_inference_steps=$num_steps, $guidance).images[0]"""
LORA = """from diffusers import DiffusionPipeline, $scheduler

pipeline = DiffusionPipeline.from_pretrained("$teacher")
pipeline.scheduler = $scheduler($settings)
pipeline.load_lora_weights(".", weight_name="pytorch_lora_weights.safetensors")
image = pipeline("a prompt", num_inference_steps=$num_steps, $guidance).images[0]"""


def pipeline_card(
    kind: str, network: DiffusersNetwork, info: CheckpointInfo, num_steps: int, scheduler: str, error: float
) -> str:
    """The card of the student `network` as a `kind` that is exact in `num_steps` steps by `scheduler`."""
    family, teacher = network.family, short_name(info.teacher)
    scale = family.guidance if family.embeds_guidance else family.pipeline_guidance(1.0)
    settings = "shift=1.0, use_dynamic_shifting=False" if "Match" in scheduler else "shift=1.0"
    values = {
        "num_steps": num_steps,
        "guidance": f"{family.guidance_argument}={scale:g}",
        "scheduler": scheduler,
        "settings": settings,
        "teacher": teacher,
    }
    return TEXT.substitute(
        front_matter=front_matter(info.trains, "diffusers", [kind], unconditional=False),
        title=title(info.trains, info.teacher),
        what=WHAT["student"],
        num_steps=num_steps,
        error=f"{error:.1e}",
        example=Template(LORA if kind == "lora" else WHOLE).substitute(values),
        recipe=recipe(info.recipe, info.step),
        teacher=teacher,
        sha256=info.teacher_sha256,
        licence=licence(info.trains, info.teacher),
        citation=CITATIONS["student"],
    )
