"""Recipes: which losses, at which weights, over which times, in which phase of a training. Each is a YAML file."""

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, model_validator

from pipeline.common.config import CONFIGS, expand_home
from pipeline.common.safe_yaml import read_yaml
from pipeline.common.suggestions import suggest
from pipeline.dataset.plan import Plan
from trainer.distillation import compared, terms
from trainer.distillation.terms import BACKWARD, TrainingOwner

FOLDER = CONFIGS / "recipes"
# At most so many values of a sample are few: points in the plane are, the 64 pixels of a digit are not.
FEW_DIMENSIONS = 8


Term = Annotated[
    terms.Output
    | terms.Trajectory
    | terms.VelocityTerm
    | terms.Derivative
    | terms.Consistency
    | terms.SoftConsistency
    | terms.Lagrangian
    | terms.Eulerian
    | terms.ContinuousConsistency
    | terms.MeanFlow
    | terms.FlowMatching
    | terms.Reflow
    | compared.ConsistencyDistillation
    | compared.ConsistencyTraining
    | compared.Denoising
    | compared.Bootstrap
    | compared.Progressive
    | compared.AnnealedReflow
    | compared.Guided
    | compared.TrajectoryConsistency
    | compared.Shortcut
    | compared.ScoreDistillation
    | compared.Adversarial
    | compared.DistributionMatching,
    Discriminator("loss"),
]


class Phase(BaseModel):
    """Losses minimised together during `share` of the training.

    The student takes every `student_every`-th step only; the networks that terms train take all (two time scales).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    terms: tuple[Term, ...] = Field(min_length=1, description="Losses that are added up, each with its weight.")
    share: float = Field(default=1.0, gt=0, le=1, description="Fraction of the training.")
    student_every: int = Field(
        default=1,
        ge=1,
        exclude_if=lambda every: every == 1,
        description="Steps from one of the student to its next; the networks that terms train take every step.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        titles = [term.title for term in self.terms]
        if len(set(titles)) < len(titles):
            raise ValueError(f"two terms of a phase have one name ({', '.join(titles)}): give them different ones")
        if self.student_every > 1 and not self.training:
            raise ValueError("student_every is for a phase with a term that trains a network of its own: leave it out")
        return self

    @property
    def weights(self) -> list[float]:
        """The weight of each loss: of the terms, then of the networks that they train."""
        return [*(term.weight for term in self.terms), *(1.0 for _ in self.training)]

    @property
    def training(self) -> list[TrainingOwner]:
        """The terms that train a network of their own."""
        return [term for term in self.terms if isinstance(term, TrainingOwner)]

    def trains_student(self, step: int) -> bool:
        """Whether the student takes `step` of the training."""
        return step % self.student_every == 0

    @property
    def titles(self) -> list[str]:
        """The name of each loss in the log."""
        return [*(term.title for term in self.terms), *(f"{term.title}, its network" for term in self.training)]

    @property
    def cost(self) -> float:
        """The cost of a row of the batch, in evaluations of the network without a backward pass."""
        backward = BACKWARD * (1 - 1 / self.student_every)  # which the student leaves out in the other steps
        return sum((term.cost - backward) / term.stride for term in self.terms)


class Recipe(BaseModel):
    """What is trained, on what, and how: phases one after the other, whose shares add up to 1.

    A student is sampled in steps that are even after a shift of `step_shift` (`path.shifted`), which above 1 makes them
    shorter near the noise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="custom", description="Name in reports; a file's own by default.")
    about: str = Field(default="", description="What it is, in a line.")
    phases: tuple[Phase, ...] = Field(min_length=1, description="Phases of the training, whose shares add up to 1.")
    # Left out of what is written where it is 1: runs from before there was a choice resume.
    step_shift: float = Field(
        default=1.0,
        gt=0,
        exclude_if=lambda shift: shift == 1,
        description="Shift of the even times of the student's steps towards the noise: with 2, two meet at t = 2/3.",
    )
    in_few_dimensions: str | None = Field(
        default=None,
        exclude_if=lambda name: name is None,
        description="The recipe that is taken in its place where a sample has at most eight values.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if abs(sum(phase.share for phase in self.phases) - 1) > 1e-6:
            raise ValueError(f"the shares of the phases add up to 1; they are {[p.share for p in self.phases]}")
        if len({(term.trains, term.reads) for term in self.terms}) > 1:
            raise ValueError("a recipe trains a student on trajectories or a teacher on one kind of data, not several")
        return self

    @property
    def terms(self) -> list[Term]:
        return [term for phase in self.phases for term in phase.terms]

    @property
    def trains(self) -> Literal["student", "teacher"]:
        return self.terms[0].trains

    @property
    def reads(self) -> Literal["trajectories", "images"]:
        return self.terms[0].reads

    @property
    def distance_sha256(self) -> dict[str, str]:
        """The sha256 of the weights of every perceptual distance, by its name."""
        distances = [term.distance for term in self.terms if hasattr(term, "distance")]
        return {d.name: d.weights_sha256 for d in distances if d.weights_sha256 is not None}

    @property
    def needs_teacher(self) -> bool:
        return any(term.needs_teacher for term in self.terms)

    @property
    def needs_velocities(self) -> bool:
        return any(term.needs_velocities for term in self.terms)

    @property
    def needs_ema(self) -> bool:
        return any(term.needs_ema for term in self.terms)

    @property
    def cost(self) -> float:
        """The cost of a row of the batch, averaged over the phases."""
        return sum(phase.share * phase.cost for phase in self.phases)

    def phase(self, step: int, num_steps: int) -> Phase:
        """The phase that `step` of `num_steps` belongs to."""
        end = 0.0
        for phase in self.phases:
            end += phase.share * num_steps
            if step < end:
                return phase
        return self.phases[-1]

    def begins_phase(self, step: int, num_steps: int) -> bool:
        """Whether `step` of `num_steps` is the first of a phase."""
        return step == 0 or self.phase(step, num_steps) is not self.phase(step - 1, num_steps)

    def fitting(self, plan: Plan) -> "Recipe":
        """This recipe, or the one `in_few_dimensions` where data of `plan` are such and lack nothing that it needs."""
        if self.in_few_dimensions is None or math.prod(plan.shape) > FEW_DIMENSIONS:
            return self
        other = Recipe.model_validate(load_recipe(self.in_few_dimensions))
        return self if other.lack(plan) else other

    def lack(self, plan: Plan) -> str:
        """What this recipe needs that data of `plan` lack, as a phrase; empty if nothing."""
        if self.needs_velocities and not plan.velocities:
            return "needs velocities, and there are none: generate with --velocities"
        needed = max(term.num_states for term in self.terms)
        if plan.num_states < needed:
            return f"needs {needed} or more stored states, and there are {plan.num_states}: generate with --states"
        return ""


def recipe_names() -> list[str]:
    """The recipes that come with the program."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(source: object) -> object:
    """The content of the recipe called `source`, or of the YAML file at that path; anything but text is returned as is.

    Raises:
        ValueError: no such recipe, or the file cannot be read.
    """
    if not isinstance(source, str):
        return source
    path = next((p for p in (FOLDER / f"{source}.yaml", Path(str(expand_home(source)))) if p.is_file()), None)
    if path is None:
        known = suggest(source, recipe_names())
        raise ValueError(
            f"no recipe {source!r}: wanted one of {', '.join(recipe_names())}, a YAML file, or phases{known}"
        )
    content = read_yaml(path)
    return {"name": path.stem, **content} if isinstance(content, dict) else content


# In configurations: a name, the path of a YAML file, or a recipe itself.
RecipeSource = Annotated[Recipe, BeforeValidator(load_recipe)]
