"""Whether a user's teacher is a function: of the same question the same answer, whoever else is in the batch."""

import torch
from torch import Tensor

from pipeline.common.errors import WorkFailed
from pipeline.flow.noise import draw_start
from pipeline.flow.numerics import fixed_numerics
from pipeline.teachers.teacher import Teacher

NUM_ROWS = 4
# Of the answer's own size. Sums in another order make less, even in half precision or with atomics; dropout and batch
# statistics make more.
REPEAT_TOLERANCE, BATCH_TOLERANCE = 1e-3, 0.03


@torch.no_grad()
def require_sound(teacher: Teacher, device: torch.device, num_rows: int = NUM_ROWS) -> None:
    """Evaluate the velocity at a few points twice, and at one of them alone; called once, when a teacher is loaded.

    A teacher that refuses the question (one that takes a fixed batch size, say) is left to the work that needs it,
    which asks in batches of its own.

    Raises:
        WorkFailed: the answers differ.
    """
    noise, label = draw_start(0, range(num_rows), teacher.shape, teacher.num_classes, device)
    t = torch.full((num_rows,), (teacher.t_start + teacher.t_end) / 2, device=device)
    try:
        with fixed_numerics():
            first, second = (teacher.velocity(noise, t, label).double() for _ in range(2))
    except Exception:  # the work says it, with the teacher's name
        return
    if (gap := _gap(first, second)) > REPEAT_TOLERANCE:
        raise WorkFailed(
            f"teacher {teacher.name} answers the same question differently (two evaluations at one point are "
            f"{gap:.1e} of their size apart): call eval() on its network, or take the randomness out of it"
        )
    try:
        with fixed_numerics():
            alone = teacher.velocity(noise[:1], t[:1], None if label is None else label[:1]).double()
    except Exception:
        return
    if (gap := _gap(first[:1], alone)) > BATCH_TOLERANCE:
        raise WorkFailed(
            f"teacher {teacher.name} answers for a sample by its batch (alone, and beside others, the velocity is "
            f"{gap:.1e} of its size apart): call eval() on its network, so that batch normalisation uses its averages"
        )


def _gap(a: Tensor, b: Tensor) -> float:
    """RMS of the difference, relative to the larger RMS; 0 for velocities that are 0 or not finite."""
    size = torch.stack([a, b]).flatten(1).square().mean(1).max().sqrt()
    gap = float((a - b).square().mean().sqrt() / size)
    return gap if gap == gap else 0.0
