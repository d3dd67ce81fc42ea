"""The command that follows a stage, word by word."""

import shlex

from pipeline.common.errors import BadInput, WorkFailed
from pipeline.dataset.manifest import read_dataset
from pipeline.dataset.plan import Plan
from pipeline.generation.config import GenerateConfig
from pipeline.networks import network_for
from pipeline.storage.store import open_store
from pipeline.teachers.loading import resolve
from trainer.config import TrainConfig

NUM_STEPS = 1000  # of the training that is proposed: minutes, for a first look
FROM_ENDS = "trajectory"  # a recipe that reads no states between


def after_generate(settings: GenerateConfig, plan: Plan) -> str:
    """The training of a student on the data of `plan`, with a network where its teacher has none."""
    run = f"{settings.out.rstrip('/')}-run"
    recipe = () if plan.num_states else ("--recipe", FROM_ENDS)
    network = ("--set", f"network={network_for(plan.shape)}") if _lacks_network(settings.teacher) else ()
    return _command("train", "--data", settings.out, "--out", run, "--steps", str(NUM_STEPS), *recipe, *network)


def after_train(settings: TrainConfig) -> str:
    """What shows the student of a training, or uses its teacher."""
    run = str(settings.mirror or settings.out)
    if settings.recipe.trains == "teacher":
        return _command("generate", "--teacher", str(settings.out), "--n", "100k", "--out", f"{run}-data")
    if _draws_from_prompts(settings.data):  # its evaluation wants prompts that the training has not seen
        return _command("sample", run, "--out", f"{run}-samples.png")
    return _command("evaluate", run, "--out", f"{run}-report")


def _command(*words: str) -> str:
    return f"next: traflow-pipeline {shlex.join(words)}"


def _lacks_network(teacher: str) -> bool:
    """Whether a student cannot start from `teacher`, a function of the user's without a network."""
    source = resolve(teacher)
    if not source.is_function:
        return False
    try:
        return source.load(quiet=True).network is None
    except (BadInput, WorkFailed):  # its data were complete, and its module has gone
        return False


def _draws_from_prompts(data: str | None) -> bool:
    dataset = None if data is None else read_dataset(open_store(data))
    return dataset is not None and dataset.plan.conditions is not None
