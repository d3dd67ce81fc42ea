from eval.report.chart_labels import Box, Label, along, put_label

FRAME = Box(0, 0, 300, 100)


def test_a_name_stands_right_of_its_point_where_there_is_room() -> None:
    assert put_label("abc", [(100, 50)], [], [], [], FRAME) == Label(109, 54, "start", "abc")


def test_at_the_right_end_it_stands_on_the_left() -> None:
    assert put_label("abc", [(295, 50)], [], [], [], FRAME) == Label(286, 54, "end", "abc")


def test_a_long_name_stands_above_and_inside() -> None:
    label = put_label("a" * 40, [(150, 50)], [], [], [], FRAME)
    assert label is not None
    assert (label.x, label.anchor) == (150, "middle")
    assert label.box.is_inside(FRAME)
    moved = put_label("a" * 40, [(10, 50)], [], [], [], FRAME)
    assert moved is not None
    assert moved.box.is_inside(FRAME)


def test_it_covers_as_little_as_it_can_and_no_other_name() -> None:
    right = Box(105, 40, 140, 60)
    label = put_label("abc", [(100, 50)], [right], [], [], FRAME)
    assert label is not None
    assert not label.box.touches(right)
    line = list(along([(100, 50), (300, 50)]))
    assert put_label("abc", [(100, 50)], [], [], line, FRAME) == Label(91, 54, "end", "abc")


def test_it_rather_covers_a_line_than_a_mark() -> None:
    line = list(along([(0, 50), (100, 50)]))
    label = put_label("abc", [(100, 50)], [], [(115, 52), (100, 40), (100, 62)], line, FRAME)
    assert label == Label(91, 54, "end", "abc")


def test_without_room_there_is_no_name() -> None:
    assert put_label("a" * 50, [(100, 50)], [], [], [], FRAME) is None
    assert put_label("abc", [], [], [], [], FRAME) is None


def test_points_along_a_line_leave_no_gap() -> None:
    assert list(along([])) == []
    assert list(along([(0, 0)])) == [(0, 0)]
    assert list(along([(0, 0), (10, 0), (10, 5)])) == [(0, 0), (5, 0), (10, 0), (10, 5)]
