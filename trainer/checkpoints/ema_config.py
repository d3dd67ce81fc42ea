"""Which average of the weights. Nothing here needs torch, so that a configuration is checked at once."""

from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipeline.common.config import Unit
from pipeline.common.plural import parse_count

KINDS = ("decay", "half_life_images", "sigma_rel")
# The paper's half-life, and EDM's ramp-up (Karras et al. 2022, arXiv 2206.00364, training code).
DEFAULT = {"half_life_images": 10_000_000, "ramp_up": 0.05}
MAX_SIGMA_REL = 0.28  # gamma is near 0 here, a plain mean; no profile is wider than 0.289


class EmaConfig(BaseModel):
    """One average, of exactly one of three kinds; without a kind it is `DEFAULT`.

    The kinds are `decay`, `half_life_images` (with or without `ramp_up`), and `sigma_rel`, with which `reconstruct`
    works.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        default="ema", pattern="^[A-Za-z0-9_-]+$", description="Name of the average, which `--weights` takes."
    )
    decay: float | None = Field(
        default=None, gt=0, lt=1, description="Share of the old average in each step, whatever the batch size."
    )
    half_life_images: Annotated[float | None, Unit("images"), BeforeValidator(parse_count)] = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Images after which a step's weight has halved: 10 million by default, with ramp_up 0.05.",
    )
    ramp_up: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Bound of the half-life as a fraction of the images seen, so that the start is forgotten.",
    )
    sigma_rel: float | None = Field(
        default=None,
        gt=0,
        lt=MAX_SIGMA_REL,
        description="Width of a power-function average relative to the images seen; `average` makes others of two.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, values: object) -> object:
        if isinstance(values, dict) and all(values.get(key) is None for key in (*KINDS, "ramp_up")):
            return {**values, **DEFAULT}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) > 1:
            raise ValueError(f"{self.name}: wanted one of {', '.join(KINDS)}; {' and '.join(given)} are given")
        if self.ramp_up is not None and self.half_life_images is None:
            raise ValueError(f"{self.name}: ramp_up shortens a half-life: give it with half_life_images or not at all")
        return self
