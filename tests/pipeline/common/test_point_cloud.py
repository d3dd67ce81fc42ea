"""Points in the plane as a picture: where each dot is, and that one alone can be seen."""

import numpy as np
from numpy.typing import NDArray

from pipeline.common.point_cloud import MARGIN, SIDE, draw_points


def drawn(*points: tuple[float, float]) -> NDArray[np.int64]:
    darkness: NDArray[np.int64] = 255 - draw_points(np.array(points, np.float32).reshape(-1, 2), (-1.0, 1.0))[
        0, 0
    ].astype(np.int64)
    return darkness


def test_a_point_is_a_dot_of_several_pixels_where_x_is_to_the_right_and_y_upwards() -> None:
    rows, columns = np.nonzero(drawn((0.5, 0.8)))
    assert len(rows) == 9
    scale = SIDE / (2 + 4 * MARGIN)
    np.testing.assert_allclose(columns.mean(), (1 + 2 * MARGIN + 0.5) * scale, atol=1)
    np.testing.assert_allclose(rows.mean(), (1 + 2 * MARGIN - 0.8) * scale, atol=1)


def test_the_more_points_the_darker_and_a_dot_at_the_edge_is_cut() -> None:
    assert drawn((0.0, 0.0), (0.0, 0.0)).sum() > drawn((0.0, 0.0)).sum() > 0
    assert len(np.nonzero(drawn((1.199, 1.199)))[0]) == 4


def test_what_is_not_finite_or_far_outside_is_left_out() -> None:
    assert not drawn((np.nan, 0.0), (0.0, np.inf), (9.0, 0.0)).any()
    assert not drawn().any()
