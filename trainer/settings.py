"""The settings of a training that are checked without torch, at once."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipeline.common.config import LocalPath, PathText
from pipeline.storage.cache import with_mirror
from pipeline.storage.store import Location
from trainer.checkpoints.ema_config import EmaConfig


class TrainerConfig(BaseModel):
    """The optimisation: AdamW, its learning rate warmed up linearly, then constant or decayed to zero.

    The ranks share a batch evenly; each accumulates gradients over `accumulate` parts of its share. `ema` lists the
    averages that are kept; evaluations and later stages use the first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_steps: int = Field(ge=1)
    batch_size: int = Field(default=128, ge=2)
    accumulate: int = Field(default=1, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = Field(default=100, ge=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool | None = None  # by default on CUDA, where the recipe allows it and a compiler is there
    tf32: bool = True  # float32 products on CUDA keep 10 bits of their factors
    cudnn_benchmark: bool = True  # cuDNN times its kernels for each shape at first
    gradient_checkpointing: bool = Field(default=False, exclude_if=lambda asked: not asked)
    # What each of several processes holds of a student: ddp the whole, fsdp a share of every weight.
    parallel: Literal["ddp", "fsdp"] = Field(default="ddp", exclude_if=lambda asked: asked == "ddp")
    skip_nonfinite: bool = False
    ema: Annotated[tuple[EmaConfig, ...], BeforeValidator(lambda x: (x,) if isinstance(x, dict) else x)] = Field(
        default=(EmaConfig(),), min_length=1
    )
    log_every: int = Field(default=20, ge=1)
    checkpoint_every: int = Field(default=1000, ge=1)  # steps
    checkpoint_minutes: float = Field(default=10, gt=0)  # a checkpoint also after so long without one
    keep_checkpoints: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [average.name for average in self.ema]
        if len(set(names)) < len(names):
            raise ValueError(f"ema: every average has a name of its own; they are {', '.join(names)}")
        return self


class TrainSettings(BaseModel):
    """The keys of `trainer.config.TrainConfig`. Recipe and network, which take torch to check, are checked there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: LocalPath
    recipe: Any = "anchored"
    data: Location | None = None
    images: PathText | None = None
    network: Any = None
    lora: Any = Field(default=None, exclude_if=lambda lora: lora is None)
    start: Location = "teacher"
    teacher: PathText | None = None
    mirror: Location | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    device: str = "auto"
    tensorboard: bool = False
    wandb: str | None = Field(default=None, description="a project of Weights & Biases")
    trainer: TrainerConfig

    @model_validator(mode="before")
    @classmethod
    def _mirror_url(cls, values: object) -> object:
        return with_mirror(values)
