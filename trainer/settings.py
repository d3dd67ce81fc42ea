"""The settings of a training that are checked without torch, at once."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipeline.common.config import Count, LocalPath, PathText, Unit
from pipeline.storage.cache import with_mirror
from pipeline.storage.store import Location
from trainer.checkpoints.ema_config import EmaConfig

RECIPE = "Losses and phases: a name in configs/recipes/, a YAML file, or a recipe itself."
NETWORK = (
    "Network of a teacher, or of a student that is not its teacher's; it takes what fits of the teacher's weights."
)
LORA = "Low-rank adapter to train in the network of a diffusers pipeline, instead of all its weights."


class TrainerConfig(BaseModel):
    """The optimisation: AdamW, its learning rate warmed up linearly, then constant or decayed to zero.

    The ranks share a batch evenly.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    groups: ClassVar = {
        "num_steps": "Optimisation",
        "precision": "Precision and speed",
        "ema": "Averages",
        "log_every": "Log and checkpoints",
    }

    num_steps: Annotated[Count, Unit("steps")] = Field(
        ge=1, description="Length of the training; a finished run with more steps is trained further."
    )
    batch_size: Annotated[Count, Unit("images")] = Field(
        default=128, ge=2, description="Size of a batch, over all ranks and accumulated parts."
    )
    accumulate: int = Field(
        default=1, ge=1, description="Number of parts in which each rank computes its share of a batch, to save memory."
    )
    lr: float = Field(default=1e-3, gt=0, description="Peak learning rate of AdamW.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="Course of the learning rate after the warm-up: decayed to zero, or constant."
    )
    warmup_steps: Annotated[Count, Unit("steps")] = Field(
        default=100, ge=0, description="Length of the linear warm-up of the learning rate."
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.99), description="AdamW's decay rates of the gradient's first and second moments."
    )
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's decoupled weight decay.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Norm to which a larger gradient is scaled down.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="Precision of the networks' products; weights and optimiser stay fp32."
    )
    compile: bool | None = Field(
        default=None,
        description="Compile the networks; by default on CUDA, where the recipe allows it and a compiler is there.",
    )
    tf32: bool = Field(default=True, description="Let fp32 products on CUDA round their factors to 10 bits.")
    cudnn_benchmark: bool = Field(default=True, description="Let cuDNN time its kernels for each new shape.")
    gradient_checkpointing: bool = Field(
        default=False,
        exclude_if=lambda asked: not asked,
        description="Recompute activations in the backward pass of a diffusers network: less memory, more time.",
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        default="ddp",
        exclude_if=lambda asked: asked == "ddp",
        description="What each of several processes holds of a student: ddp the whole, fsdp a share of every weight.",
    )
    skip_nonfinite: bool = Field(
        default=False, description="Skip and count steps with a non-finite gradient, instead of stopping at the first."
    )
    ema: Annotated[tuple[EmaConfig, ...], BeforeValidator(lambda x: (x,) if isinstance(x, dict) else x)] = Field(
        default=(EmaConfig(),),
        min_length=1,
        description="Averages of the weights to keep; evaluations and later stages use the first.",
    )
    log_every: Annotated[Count, Unit("steps")] = Field(default=20, ge=1, description="Steps between lines of the log.")
    checkpoint_every: Annotated[Count, Unit("steps")] = Field(
        default=1000, ge=1, description="Steps between checkpoints."
    )
    checkpoint_minutes: Annotated[float, Unit("minutes")] = Field(
        default=10, gt=0, description="Longest time between checkpoints, which bounds what a crash loses."
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="Number of newest checkpoints to keep.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [average.name for average in self.ema]
        if len(set(names)) < len(names):
            raise ValueError(f"ema: every average has a name of its own; they are {', '.join(names)}")
        return self


class TrainSettings(BaseModel):
    """The keys of `trainer.config.TrainConfig`. Recipe and network, which take torch to check, are checked there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    groups: ClassVar = {
        "out": "What is trained",
        "network": "Network",
        "mirror": "Where it runs",
        "tensorboard": "Logs",
        "trainer": "Training",
    }

    out: LocalPath = Field(description="Folder or URL of the run; an existing run is resumed.")
    recipe: Any = Field(default="anchored", description=RECIPE)
    data: Location | None = Field(default=None, description="Folder or URL of a data set, for a student.")
    images: PathText | None = Field(
        default=None,
        description="Image set, for a teacher: digits, a folder, .zip, .npz, .npy or hf:NAME:SPLIT#COLUMN.",
    )
    network: Any = Field(default=None, description=NETWORK)
    lora: Any = Field(default=None, exclude_if=lambda lora: lora is None, description=LORA)
    start: Location = Field(
        default="teacher",
        description="Weights to start from: teacher, scratch, or a trained model (a run, a checkpoint or a file).",
    )
    teacher: PathText | None = Field(
        default=None, description="The teacher, if it has moved since the data set was generated."
    )
    mirror: Location | None = Field(
        default=None, description="Folder or URL that gets a copy of every checkpoint; a new machine resumes from it."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the data order and of all random draws.")
    device: str = Field(default="auto", description="Device: auto, cpu, cuda, cuda:1, ...")
    tensorboard: bool = Field(default=False, description="Log to RUN/tensorboard too.")
    wandb: str | None = Field(default=None, description="Project of Weights & Biases to log to.")
    trainer: TrainerConfig = Field(description="The optimisation, its averages and its checkpoints.")

    @model_validator(mode="before")
    @classmethod
    def _mirror_url(cls, values: object) -> object:
        return with_mirror(values)
