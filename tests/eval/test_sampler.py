import torch

from eval.sampler import draw_samples, student_sampler, teacher_sampler
from pipeline.noise import Stream, draw_noise
from pipeline.solver import Solver
from tests.problems import ExactStudent, GaussianFlow
from trainer.student import Student

FLOW = GaussianFlow()
EXACT: Student = ExactStudent(FLOW)  # type: ignore[assignment]
CPU = torch.device("cpu")


def test_an_image_can_be_drawn_again_by_its_index() -> None:
    sampler = student_sampler(EXACT, 2, 1.0, 0.0)
    whole = torch.cat([b.samples for b in draw_samples(sampler, (1, 4, 4), 0, 7, 10, 4, CPU)])
    part = torch.cat([b.samples for b in draw_samples(sampler, (1, 4, 4), 0, 7, 5, 3, CPU)])
    torch.testing.assert_close(part, whole[:5])
    noise = torch.from_numpy(draw_noise(7, range(10), (1, 4, 4), Stream.EVALUATION_NOISE))
    torch.testing.assert_close(whole, FLOW.mean + FLOW.std * noise)


def test_evaluations_are_counted_not_assumed() -> None:
    for sampler, expected in [
        (student_sampler(EXACT, 4, 1.0, 0.0), 4),
        (teacher_sampler(FLOW.teacher(), Solver(name="euler", num_steps=4)), 4),
        (teacher_sampler(FLOW.teacher(), Solver(name="rk4", num_steps=4)), 16),
    ]:
        (batch,) = draw_samples(sampler, (1, 4, 4), 0, 0, 4, 4, CPU)
        assert batch.nfe == expected
        assert batch.wall_seconds > 0


def test_the_teachers_own_solver_agrees_with_the_exact_student() -> None:
    (truth,) = draw_samples(teacher_sampler(FLOW.teacher(), Solver()), (1, 4, 4), 0, 0, 8, 8, CPU)
    (found,) = draw_samples(student_sampler(EXACT, 1, 1.0, 0.0), (1, 4, 4), 0, 0, 8, 8, CPU)
    torch.testing.assert_close(found.samples, truth.samples, atol=1e-3, rtol=0)
