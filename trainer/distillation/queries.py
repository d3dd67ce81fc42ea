"""What losses ask of networks, as data, so that all losses of a step share one call of each network.

A loss is a generator: it yields the queries that do not depend on one another's answers, is sent the answers in the
same order, and returns its values. `evaluate` runs several losses together, round by round.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pipeline.flow.path import match_dims

# Whose answer is wanted: the network in training, differentiated or not, or its average.
Source = Literal["live", "stopped", "ema"]


@dataclass(frozen=True)
class Query:
    """The mean velocity F(x, t, s, label), [B, C, H, W], at states x [B, C, H, W], times [B] and labels [B].

    `s` is None for a network of one time, whose answer is the velocity v(x, t, label). A query of the `derivative` is
    answered by G(x, t, s) = x + (s - t) F and its derivative in s, stacked: [2, B, C, H, W].
    """

    x: Tensor
    t: Tensor
    s: Tensor | None
    label: Tensor | None
    source: Source = "live"
    derivative: bool = False

    def arrival(self, mean_velocity: Tensor) -> Tensor:
        """G(x, t, s), where the student arrives with the answer `mean_velocity`."""
        assert self.s is not None
        return self.x + match_dims(self.s - self.t, self.x) * mean_velocity


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
