"""What `traflow-pipeline train` takes."""

from pydantic import Field

from pipeline.networks import NetworkConfig
from pipeline.networks.diffusers.adapter import AdapterConfig
from trainer import settings
from trainer.distillation.recipes import Recipe, RecipeSource, load_recipe
from trainer.settings import TrainerConfig as TrainerConfig
from trainer.settings import TrainSettings


class TrainConfig(TrainSettings):
    """What `traflow-pipeline train` takes: trajectories (`data`) or `images`, as the recipe reads.

    A student `start`s from its teacher's network, whole or in part, or from scratch; it has the teacher's architecture
    unless `network` gives another. The student of a pipeline of diffusers is its network,
    whole or with a `lora` adapter. `start` may also name a trained model, whatever `sample` takes: the new run begins
    from its weights, with its own schedule and a fresh optimiser. Every checkpoint is copied to `mirror`, a folder or
    URL; a machine without checkpoints resumes from there. An `out` that is a URL is a mirror, and the run is kept in
    the user's cache.
    """

    recipe: RecipeSource = Field(
        default_factory=lambda: Recipe.model_validate(load_recipe("anchored")), description=settings.RECIPE
    )
    network: NetworkConfig | None = Field(default=None, description=settings.NETWORK)
    lora: AdapterConfig | None = Field(default=None, exclude_if=lambda lora: lora is None, description=settings.LORA)
