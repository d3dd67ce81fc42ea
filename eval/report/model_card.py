"""The model card of evaluated weights: what every card says, the figures of the report, and how to draw images."""

import shlex
from pathlib import Path, PurePath
from string import Template

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from eval.report import markdown, tables
from eval.report.gains import gains
from eval.results import Report
from pipeline.common.image_grid import is_drawable
from pipeline.teachers.loading import DIFFUSERS
from trainer.export.card import CITATIONS, dump_yaml, front_matter, licence, recipe, title, what

TEMPLATES = Path(__file__).with_name("templates")
MEASURED = (
    "samples",
    "reference",
    "prompts",
    "quantiser",
    "evaluate",
    "machine",
    "versions",
    "date",
)  # of tables.facts, beside the features
PROMPT = "a red bicycle in the snow"  # of the examples
MADE_OF = ("weights", "teacher", "training data", "generate", "train")

SCOT = """@inproceedings{wu2025scot,
  title     = {SCoT: Unifying Consistency Models and Rectified Flows via Straight-Consistent Trajectories},
  author    = {Wu, Zhangkai and Fan, Xuhui and Wu, Hongyu and Cao, Longbing},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2025}
}"""

# Of the examples, for images and for other arrays: the file of the samples, and what saving them imports and does.
SAVING = {
    True: (
        "samples.png",
        "from pipeline.common.image_grid import save_square, to_bytes",
        Template('save_square(Path("samples.png"), to_bytes(samples.numpy(), $data_range))'),
    ),
    False: ("samples.npy", "import numpy as np", Template('np.save("samples.npy", samples.numpy())')),
}
EXAMPLES = {
    "student": Template("""from pathlib import Path

import torch
from pipeline import networks
$imports
from pipeline.flow.path import step_times
from trainer.distillation.student import Student, sample

student = Student(networks.load(Path($weights)))
config, num_images, num_steps = student.network.config, 16, 4
torch.manual_seed(0)
noise = torch.randn(num_images, *config.shape)
label = torch.randint(config.num_classes, (num_images,)) if config.num_classes else None
samples = sample(student, noise, step_times(num_steps, $t_start, $t_end, $shift), label)
$save"""),
    "pipeline": Template("""import traflow_pipeline as tp

student = tp.load_student($weights$prompts)
student.sample(4, steps=4).save("samples.png")"""),
    "teacher": Template("""from pathlib import Path

import torch
$imports
from pipeline.flow.path import uniform_times
from pipeline.flow.solver import Solver, integrate
from pipeline.teachers.loading import load_teacher

teacher = load_teacher($weights, torch.device("cpu"))
torch.manual_seed(0)
noise = torch.randn(16, *teacher.shape)
label = torch.randint(teacher.num_classes, (16,)) if teacher.num_classes else None
times = uniform_times(1, $t_start, $t_end)
samples = integrate(teacher.velocity, $t_start * noise, times, label, Solver()).states[-1]
$save"""),
}


def card(report: Report) -> str:
    """The card in Markdown with front matter; its paths are relative to the folder of the run, where it belongs."""
    training, facts = report.training, tables.facts(report)
    trains, teacher = training.trains, training.teacher
    weights, is_pipeline = _weights(report), (teacher or "").startswith(DIFFUSERS)
    is_image = is_pipeline or report.shape is None or is_drawable(report.shape)
    file, imports, save = SAVING[is_image]
    prompt = f" --prompt {shlex.quote(PROMPT)}" if report.prompts else ""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=False, undefined=StrictUndefined)
    environment.filters["md"] = markdown.escape
    text = environment.get_template("card.md").render(
        front_matter=front_matter(
            trains, "traflow-pipeline", unconditional=is_image and not report.prompts, of_images=is_image
        ),
        title=title(trains, report.teacher),
        what=what(trains, is_image),
        is_student=trains == "student",
        made_of={name: facts[name] for name in MADE_OF if name in facts}
        | {"recipe": recipe(training.recipe, training.step)},
        sentences=markdown.bullets(gains(report)),
        table=markdown.table(report),
        remarks=markdown.bullets(markdown.remarks(report)),
        measured=markdown.bullets(
            [f"{name}: {text}" for name, text in facts.items() if name in MEASURED or name.startswith("features")]
        ),
        sample=f"traflow-pipeline sample {shlex.quote(str(weights.parent))}{prompt} --steps 4 --out {file}",
        example=EXAMPLES["pipeline" if is_pipeline else trains].substitute(
            weights=repr(str(weights)),
            prompts=f", prompts=[{PROMPT!r}]" if report.prompts else "",
            t_start=training.t_start,
            t_end=training.t_end,
            shift=training.step_shift,
            imports=imports,
            save=save.substitute(data_range=training.data_range),
        ),
        configuration=dump_yaml(training.config),
        licence=licence(trains, teacher),
        citation="\n\n".join([CITATIONS[trains], *([SCOT] if trains == "student" else [])]),
    )
    return text.rstrip() + "\n"


def _weights(report: Report) -> PurePath:
    """The file of weights that was evaluated, relative to the folder of the run."""
    folder = PurePath(report.checkpoint)
    inside = PurePath("checkpoints", folder.name) if folder.parent.name == "checkpoints" else PurePath()
    return inside / tables.weights_file(report)
