"""dopri5 with torchdiffeq's step control and with the cautious one: evaluations, and the error of the sample.

    python -m benchmarks.step_control

integrates 64 noises of four flows from noise to data: the digits teacher, two mixtures of Gaussians in every component,
and a network with random weights. Errors are root mean squares per sample against a reference of far smaller steps.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.common import one_thread, table
from pipeline.flow.path import uniform_times
from pipeline.flow.solver import Solver, Velocity, integrate
from pipeline.teachers.loading import load_teacher
from tests.support.problems import MixtureFlow, shaken, tiny_config

CPU = torch.device("cpu")
SHAPE = (64, 1, 8, 8)
REFERENCE = Solver(rtol=1e-7, atol=1e-7)
TOLERANCES = (1e-4, 1e-5)


def flows() -> dict[str, Velocity]:
    """The flows, by what they are called in the table."""
    network = shaken(tiny_config(resolution=8, channels=16, time_scale=16.0))
    return {
        "digits teacher": load_teacher("digits", CPU, quiet=True).velocity,
        "mixture": MixtureFlow().velocity,
        "sharp mixture": MixtureFlow((-0.9, -0.2, 0.1, 0.8), 0.05).velocity,
        "random network": lambda x, t, label: network(x, t),
    }


def rows() -> Iterator[list[str]]:
    """A row a flow, tolerance and control."""
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    for name, velocity in flows().items():
        reference = integrate(velocity, noise, uniform_times(1), None, REFERENCE).states[-1]
        for tolerance in TOLERANCES:
            for cautious in (False, True):
                solver = Solver(rtol=tolerance, atol=tolerance, cautious=cautious)
                found = integrate(velocity, noise, uniform_times(1), None, solver)
                yield [name, str(solver), str(found.nfe), *_errors(found.states[-1], reference)]


def _errors(found: Tensor, reference: Tensor) -> tuple[str, str]:
    error = (found - reference).flatten(1).square().mean(1).sqrt()
    return f"{error.median():.1e}", f"{error.quantile(0.9):.1e}"


def main() -> None:
    """The command line."""
    with one_thread():
        columns = ["flow", "solver", "evaluations", "median error", "90th percentile"]
        print(table("Step control of dopri5", columns, list(rows())))


if __name__ == "__main__":
    main()
