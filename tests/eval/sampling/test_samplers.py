import pytest
import torch

from eval.sampling.baselines import baseline_samplers
from eval.sampling.samplers import Sampler, draw_samples, student_sampler, teacher_sampler
from pipeline.common.errors import BadInput, WorkFailed
from pipeline.flow.noise import Stream, draw_noise
from pipeline.flow.solver import Solver
from tests.support.problems import ExactStudent, GaussianFlow
from trainer.distillation.student import Student

FLOW = GaussianFlow()
EXACT: Student = ExactStudent(FLOW)  # type: ignore[assignment]
CPU = torch.device("cpu")


def draw(sampler: Sampler, indices: range, batch_size: int, seed: int = 7) -> torch.Tensor:
    batches = draw_samples(sampler, (1, 4, 4), 0, seed, indices, batch_size, CPU)
    return torch.cat([batch.samples for batch in batches])


def test_an_image_can_be_drawn_again_by_its_index() -> None:
    sampler = student_sampler(EXACT, 2, 1.0, 0.0)
    whole = draw(sampler, range(10), 4)
    torch.testing.assert_close(draw(sampler, range(3, 8), 3), whole[3:8])
    noise = torch.from_numpy(draw_noise(7, range(10), (1, 4, 4), Stream.EVALUATION_NOISE))
    torch.testing.assert_close(whole, FLOW.mean + FLOW.std * noise)


def test_evaluations_are_counted_not_assumed() -> None:
    for sampler, expected in [
        (student_sampler(EXACT, 4, 1.0, 0.0), 4),
        (student_sampler(EXACT, (1.0, 0.7, 0.0), 1.0, 0.0), 2),
        (teacher_sampler(FLOW.teacher(), Solver(name="euler", num_steps=4)), 4),
        (teacher_sampler(FLOW.teacher(), Solver(name="rk4", num_steps=4)), 16),
    ]:
        (batch,) = draw_samples(sampler, (1, 4, 4), 0, 0, range(4), 4, CPU)
        assert batch.nfe == expected
        assert batch.wall_seconds > 0


def test_the_teachers_own_solver_agrees_with_the_exact_student() -> None:
    teacher, student = teacher_sampler(FLOW.teacher(), Solver()), student_sampler(EXACT, 1, 1.0, 0.0)
    torch.testing.assert_close(draw(teacher, range(8), 8), draw(student, range(8), 8), atol=1e-3, rtol=0)


def test_rows_of_other_steps_have_other_titles() -> None:
    steps: list[int | tuple[float, ...]] = [1, 2, (1.0, 0.7, 0.0), (1.0, 0.6, 0.0)]
    titles = [student_sampler(EXACT, choice, 1.0, 0.0).title for choice in steps]
    assert titles == ["student, 1 step", "student, 2 steps", "student, times 1, 0.7, 0", "student, times 1, 0.6, 0"]


def test_the_teachers_own_solver_and_the_same_few_steps_have_other_titles() -> None:
    own = teacher_sampler(FLOW.teacher(), Solver(name="euler", num_steps=2))
    few = next(each for each in baseline_samplers(FLOW.teacher(), 2) if each.name == own.name)
    assert (own.title, few.title) == ("teacher's solver, euler 2", "teacher, euler 2")


@pytest.mark.parametrize("times", [(1.0,), (0.9, 0.0), (1.0, 0.1), (1.0, 0.3, 0.3, 0.0), (1.0, 0.2, 0.4, 0.0)])
def test_times_fall_from_the_start_of_the_flow_to_its_end(times: tuple[float, ...]) -> None:
    with pytest.raises(BadInput, match="wanted times that fall from 1 to 0, both included"):
        student_sampler(EXACT, times, 1.0, 0.0)


def test_a_batch_that_does_not_fit_names_a_smaller_one() -> None:
    def full(*_: object) -> tuple[torch.Tensor, int]:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB.")

    sampler = Sampler("student", "2 steps", full, 2)
    line = "2 steps: a batch of 8 samples does not fit into the memory of cpu: take a batch_size such as 4, or another"
    with pytest.raises(WorkFailed, match=line):
        next(draw_samples(sampler, (1, 4, 4), 0, 0, range(8), 8, torch.device("cpu")))
