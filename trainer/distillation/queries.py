"""What losses ask of networks, as data, so that all losses of a step share one call of each network.

A loss is a generator: it yields the queries that do not depend on one another's answers, is sent the answers in the
same order, and returns its values. `evaluate` runs several losses together, round by round.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pipeline.flow.path import match_dims

# Whose answer is wanted: the network in training, differentiated or not, or its average. The gradient goes through the
# average that is held to the state that it is asked at.
Source = Literal["live", "stopped", "ema", "held-ema"]


@dataclass(frozen=True)
class Tangent:
    """The direction of a derivative: how fast x [B, C, H, W] (None: it stands still), t and s move."""

    x: Tensor | None = None
    t: float = 0.0
    s: float = 0.0


IN_S = Tangent(s=1.0)


@dataclass(frozen=True)
class Query:
    """The mean velocity F(x, t, s, label), [B, C, H, W], at states x [B, C, H, W], times [B] and labels [B].

    `s` is None for a network of one time, whose answer is the velocity v(x, t, label). With a `tangent` the answer is F
    and its derivative along it, stacked: [2, B, C, H, W].
    """

    x: Tensor
    t: Tensor
    s: Tensor | None
    label: Tensor | None
    source: Source = "live"
    tangent: Tangent | None = None

    def arrival(self, mean_velocity: Tensor) -> Tensor:
        """G(x, t, s), where the student arrives with the answer `mean_velocity`."""
        assert self.s is not None
        return self.x + match_dims(self.s - self.t, self.x) * mean_velocity

    def departure(self, answer: Tensor) -> Tensor:
        """The derivative of G(x, t, s) along the tangent, with the `answer` [2, B, C, H, W] to it."""
        assert self.s is not None
        assert self.tangent is not None
        mean_velocity, change = answer
        moved: Tensor = (self.tangent.s - self.tangent.t) * mean_velocity + match_dims(self.s - self.t, self.x) * change
        return moved if self.tangent.x is None else self.tangent.x + moved


# A loss in progress: one value per sample, [B], in the end.
Loss = Generator[tuple[Query, ...], list[Tensor], Tensor]
Answer = Callable[[Sequence[Query]], list[Tensor]]


def evaluate(losses: Sequence[Loss], answer: Answer) -> list[Tensor]:
    """The values of each loss, [B] each; `answer` is called once for all queries of a round."""
    values: dict[int, Tensor] = {}
    pending = {number: next(loss) for number, loss in enumerate(losses)}
    while pending:
        answers = iter(answer([query for queries in pending.values() for query in queries]))
        following = {}
        for number, queries in pending.items():
            try:
                following[number] = losses[number].send([next(answers) for _ in queries])
            except StopIteration as end:
                values[number] = end.value
        pending = following
    return [values[number] for number in range(len(losses))]
