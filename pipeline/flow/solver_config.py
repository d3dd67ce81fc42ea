"""Which solver, and how accurate. Nothing here needs torch, so that a configuration is checked at once."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.common.config import Unit

# Of a teacher's products: its state, the solver and what is stored stay float32 or better.
Precision = Literal["fp32", "tf32", "bf16", "fp16"]

ADAPTIVE = ("dopri5", "bosh3", "adaptive_heun", "fehlberg2", "dopri8")
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4")
DEFAULT_TOLERANCE = 1e-5  # the tolerance of Rectified Flow's RK45 sampler


class Solver(BaseModel):
    """A solver and its accuracy: tolerances for an adaptive one, a number of steps for a fixed-step one.

    "dopri5" is the RK45 of Dormand and Prince; "rk4" is torchdiffeq's 3/8 rule. A `cautious` dopri5 never tries a
    longer step right after one that failed (Hairer, Norsett & Wanner 1993, Section II.4).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal[ADAPTIVE + FIXED] = Field(  # type: ignore[valid-type]
        default="dopri5",
        description="Solver; the first five adapt their steps to the tolerances, the others take fixed steps.",
    )
    rtol: float | None = Field(default=None, description="Relative tolerance of an adaptive solver.")
    atol: float | None = Field(default=None, description="Absolute tolerance of an adaptive solver.")
    num_steps: Annotated[int | None, Unit("steps")] = Field(
        default=None, description="Number of steps of a fixed-step solver, which needs one."
    )
    # Left out of a plan where it is not set, so that plans from before keep their digests.
    cautious: bool = Field(
        default=False,
        exclude_if=lambda cautious: not cautious,
        description="Never let dopri5 try a longer step right after a rejected one.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, values: object) -> object:
        if isinstance(values, str):
            values = {"name": values}
        if isinstance(values, dict) and values.get("name", "dopri5") in ADAPTIVE:
            given = {key: value for key, value in values.items() if value is not None}
            return {"rtol": DEFAULT_TOLERANCE, "atol": DEFAULT_TOLERANCE, **given}
        return values

    @model_validator(mode="after")
    def _check(self) -> "Solver":
        if self.is_adaptive and self.num_steps is not None:
            raise ValueError(f"{self.name} chooses its own steps: give it rtol and atol, not num_steps (--steps)")
        if not self.is_adaptive and (self.rtol, self.atol) != (None, None):
            raise ValueError(f"{self.name} takes fixed steps: give it num_steps (--steps), not rtol or atol")
        if not self.is_adaptive and (self.num_steps is None or self.num_steps < 1):
            raise ValueError(f"{self.name} takes fixed steps: give it num_steps (--steps), at least 1")
        if self.cautious and self.name != "dopri5":
            raise ValueError(f"{self.name}: cautious is a step control of dopri5")
        if any(tolerance is not None and tolerance <= 0 for tolerance in (self.rtol, self.atol)):
            raise ValueError(f"{self.name}: rtol and atol are positive numbers, for example 1e-5")
        return self

    @property
    def is_adaptive(self) -> bool:
        return self.name in ADAPTIVE

    @property
    def flags(self) -> str:
        """The command-line flags of `generate` for this solver."""
        if not self.is_adaptive:
            return f"--solver {self.name} --steps {self.num_steps}"
        control = " --set solver.cautious=true" if self.cautious else ""
        return f"--solver {self.name} --rtol {_short(self.rtol)} --atol {_short(self.atol)}{control}"

    def __str__(self) -> str:
        if not self.is_adaptive:
            return f"{self.name} {self.num_steps}"
        name = f"cautious {self.name}" if self.cautious else self.name
        if self.rtol == self.atol:
            return f"{name} {_short(self.rtol)}"
        return f"{name} rtol {_short(self.rtol)} atol {_short(self.atol)}"


def _short(tolerance: float | None) -> str:
    return f"{tolerance:g}".replace("e-0", "e-")
