import base64
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eval.report.tiles import CLASSES, EVERY, GAP, GRIDS, NARROW, PATHS, STRIP, WIDE, Room, Style, tile
from pipeline.common.image_grid import Images

STYLES = {"strip": STRIP, "grids": GRIDS, "classes": CLASSES, "every": EVERY}


def images(count: int, *shape: int) -> Images:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)


def picture(uri: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(uri.partition(",")[2])))


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
@given(side=st.integers(1, 128))
def test_tiles_fit_into_wide_and_narrow_windows_and_are_large_enough(style: Style, side: int) -> None:
    for room, most in ((style.wide, WIDE), (style.narrow, NARROW)):
        fit = room.fit(side)
        assert fit.zoom >= 1
        if side <= 64:
            assert fit.count * (fit.zoom * side + GAP) <= most
            assert fit.zoom * side >= room.smallest


def test_the_more_tiles_the_smaller_they_are() -> None:
    room = Room(400, (8, 4, 2), 48)
    assert [(room.fit(side).count, room.fit(side).zoom) for side in (8, 28, 32, 64, 300)] == [
        *((4, 12), (4, 3), (4, 3), (4, 1), (2, 1)),
    ]


def test_small_pictures_keep_their_pixels_and_large_ones_are_shortened_by_a_whole_factor() -> None:
    small, large = images(3, 3, 32, 32), images(2, 3, 300, 512)
    kept, shortened = tile({"a": small}, STRIP), tile({"a": large}, STRIP)
    assert kept is not None
    assert shortened is not None
    assert np.array_equal(np.asarray(picture(kept.rows[0].images[2])), small[2].transpose(1, 2, 0))
    assert (shortened.width, shortened.height) == picture(shortened.rows[0].images[0]).size == (128, 75)
    assert picture(shortened.rows[0].images[0]).format == "JPEG"


def test_a_budget_bounds_how_many_there_are() -> None:
    rows = {str(number): images(64, 3, 32, 32) for number in range(9)}
    found = tile(rows, STRIP)
    assert found is not None
    uris = [uri for row in found.rows for uri in row.images]
    assert sum(map(len, uris)) <= STRIP.budget
    assert {len(row.images) for row in found.rows} == {5}
    grid = tile({"a": images(64, 3, 32, 32)}, GRIDS.shared(6))
    assert grid is not None
    assert len(grid.rows[0].images) % grid.wide.count == 0, "a grid has whole lines"


def test_a_grid_has_several_lines_and_a_path_all_of_its_states() -> None:
    grid, path = tile({"a": images(100, 1, 8, 8)}, GRIDS), tile({"a": images(9, 1, 8, 8)}, PATHS)
    assert grid is not None
    assert path is not None
    assert (len(grid.rows[0].images), len(path.rows[0].images)) == (64, 9)


def test_no_rows_make_no_tiles_and_one_picture_each_a_gallery() -> None:
    assert tile({}, STRIP) is None
    found = tile({"a": images(1, 1, 96, 96), "b": images(1, 1, 96, 96)}, STRIP, {"b": "note"})
    assert found is not None
    assert found.are_single
    assert [row.note for row in found.rows] == ["", "note"]
    assert found.wide.zoom == 3


def test_single_pictures_are_larger_where_they_are_few() -> None:
    few, many = (tile({str(n): images(1, 1, 256, 256) for n in range(count)}, STRIP) for count in (5, 12))
    assert few is not None
    assert many is not None
    assert (few.width, few.wide.zoom, few.narrow.zoom) == (256, 1, 1)
    assert (many.width, many.wide.zoom, many.narrow.zoom) == (128, 1, 1)
