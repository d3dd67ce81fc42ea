import numpy as np

from benchmarks.points import Effort, checkerboard, compare


def test_points_of_the_checkerboard_lie_on_its_dark_squares_and_as_many_on_each() -> None:
    points = checkerboard(8000, seed=3)
    squares = np.floor(points).astype(int)
    assert (squares.sum(axis=1) % 2 == 0).all()
    assert squares.min() == -2
    assert squares.max() == 1
    counts = np.unique(squares, axis=0, return_counts=True)[1]
    assert len(counts) == 8
    assert abs(counts - 1000).max() < 120  # four standard deviations


def test_the_table_has_the_teacher_and_a_row_for_each_recipe() -> None:
    tiny = Effort(units=9, teacher_steps=3, num_trajectories=256, num_sets=1)
    header, _, teacher, row = compare(["trajectory"], [0], tiny).splitlines()
    assert header.count("evaluation") == 4
    assert teacher.startswith("| the teacher | ")
    cells = [float(cell) for cell in row.split("|")[2:-1]]
    assert len(cells) == 4
    assert all(cell > 0 for cell in cells)
