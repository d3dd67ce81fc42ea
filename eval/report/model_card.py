"""The model card of what was evaluated, in the manner of Hugging Face: what it is, its figures, and how to use it."""

import shlex
from pathlib import Path, PurePath
from string import Template
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from eval.report import tables
from eval.results import Report, gains
from pipeline.teachers import catalogue
from trainer.export.card import CITATIONS

TEMPLATES = Path(__file__).with_name("templates")
MEASURED = ("samples", "reference", "quantiser", "machine", "versions", "date")  # of tables.facts, beside the features
MADE_OF = ("weights", "teacher", "training data")

SCOT = """@inproceedings{wu2025scot,
  title     = {SCoT: Unifying Consistency Models and Rectified Flows via Straight-Consistent Trajectories},
  author    = {Wu, Zhangkai and Fan, Xuhui and Wu, Hongyu and Cao, Longbing},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2025}
}"""

WHAT = {
    "student": "The flow map x_s = G(x_t, t, s) of a teacher's flow from noise to images: one evaluation jumps from "
    "the state at time t to the state at time s of the same trajectory. Time 1 is noise, time 0 is an image.",
    "teacher": "The velocity v(x_t, t) of a flow from noise to images. Solving dx/dt = v from time 1, noise, down to "
    "time 0 draws an image.",
}

EXAMPLES = {
    "student": Template("""from pathlib import Path

import torch
from pipeline import networks, pictures
from pipeline.flow import uniform_times
from trainer.student import Student, sample

student = Student(networks.load(Path($weights)))
config, num_images, num_steps = student.network.config, 16, 4
torch.manual_seed(0)
noise = torch.randn(num_images, *config.shape)
label = torch.randint(config.num_classes, (num_images,)) if config.num_classes else None
samples = sample(student, noise, uniform_times(num_steps, $t_start, $t_end), label)
pictures.save_square(Path("samples.png"), pictures.to_bytes(samples.numpy(), $data_range))"""),
    "teacher": Template("""from pathlib import Path

import torch
from pipeline import pictures
from pipeline.flow import uniform_times
from pipeline.solver import Solver, integrate
from pipeline.teachers import load_teacher

teacher = load_teacher($weights, torch.device("cpu"))
torch.manual_seed(0)
noise = torch.randn(16, *teacher.shape)
label = torch.randint(teacher.num_classes, (16,)) if teacher.num_classes else None
times = uniform_times(1, $t_start, $t_end)
samples = integrate(teacher.velocity, $t_start * noise, times, label, Solver()).states[-1]
pictures.save_square(Path("samples.png"), pictures.to_bytes(samples.numpy(), $data_range))"""),
}


def card(report: Report) -> str:
    """The card, in Markdown with front matter; it is to lie in the folder of the run, whose paths it names."""
    training, facts = report.training, tables.facts(report)
    trains = training.trains
    weights = _weights(report)
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=False, undefined=StrictUndefined)
    environment.filters["md"] = tables.escape
    text = environment.get_template("card.md").render(
        front_matter=_yaml(_front_matter(report)),
        title=_title(report),
        what=WHAT[trains],
        is_student=trains == "student",
        made_of={name: facts[name] for name in MADE_OF if name in facts} | {"recipe": _recipe(report)},
        sentences=tables.bullets(gains(report)),
        table=tables.table(report),
        remarks=tables.bullets(tables.remarks(report)),
        measured=tables.bullets(
            [f"{name}: {text}" for name, text in facts.items() if name in MEASURED or name.startswith("features")]
        ),
        sample=f"traflow-pipeline sample {shlex.quote(str(weights.parent))} --steps 4 --out samples.png",
        example=EXAMPLES[trains].substitute(
            weights=repr(str(weights)),
            t_start=training.t_start,
            t_end=training.t_end,
            data_range=training.data_range,
        ),
        configuration=_yaml(training.config),
        licence=_licence(report),
        citation="\n\n".join([CITATIONS[trains], *([SCOT] if trains == "student" else [])]),
    )
    return text.rstrip() + "\n"


def _yaml(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).strip()


def _front_matter(report: Report) -> dict[str, Any]:
    """The licence is for whoever publishes the weights to choose."""
    student = ["traflow", "distillation", "few-step-generation", "arxiv:2502.16972"]
    return {
        "license": "other",
        "library_name": "traflow-pipeline",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["rectified-flow", "image-generation", *(student if report.training.trains == "student" else [])],
    }


def _weights(report: Report) -> PurePath:
    """The file that was evaluated, as it is found from the folder of the run."""
    folder = PurePath(report.checkpoint)
    inside = PurePath("checkpoints", folder.name) if folder.parent.name == "checkpoints" else PurePath()
    return inside / tables.weights_file(report)


def _title(report: Report) -> str:
    if report.training.trains == "teacher":
        return "A rectified flow"
    # Of a path its end: where the teacher lay says nothing to others.
    return f"A few-step generator, distilled from {PurePath(report.training.teacher or 'an unnamed teacher').name}"


def _recipe(report: Report) -> str:
    return f"{report.training.recipe}, {report.training.step:,} steps"


def _licence(report: Report) -> str:
    text = 'None was chosen: "license: other" above says so, until whoever publishes these weights decides. '
    name = report.training.teacher
    if report.training.trains == "teacher":
        return f"{text}The terms of the images it was trained on may bind it."
    known = catalogue.find(name) if name else None
    theirs = f" ({known.name}: {known.entry.licence})" if known and known.entry.licence else ""
    return f"{text}The student learnt from its teacher's samples, whose weights' licence{theirs} may bind it."
