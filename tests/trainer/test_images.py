from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import BadInput
from pipeline.pictures import to_bytes
from trainer.images import load_images, to_float


def test_bytes_survive_the_way_to_the_flow_and_back() -> None:
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_bytes(to_float(every)), every)
    assert to_float(every).min() == -1
    assert to_float(every).max() == 1
    assert to_bytes(np.array([-7.0, 7.0], np.float32)).tolist() == [0, 255]


def test_the_digits_are_the_published_scans() -> None:
    digits = load_images("digits")
    assert digits.images.shape == (1797, 1, 8, 8)
    assert len(np.unique(digits.images)) == 17
    assert np.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_a_folder_of_pictures_has_its_folders_as_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        (tmp_path / f"class{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / f"class{i % 2}" / f"{i}.png")
    found = load_images(str(tmp_path))
    assert found.images.shape == (4, 3, 6, 5)
    assert found.labels.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(found.images[1], pixels[2].transpose(2, 0, 1))


def test_an_npz_of_images_is_an_image_set(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=pixels, labels=np.array([2, 0, 1]))
    found = load_images(str(tmp_path / "set.npz"))
    np.testing.assert_array_equal(found.images, pixels.transpose(0, 3, 1, 2))
    assert found.labels.tolist() == [2, 0, 1]


def test_what_is_no_image_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no image set 'cats': wanted digits, an \.npz file or a folder"):
        load_images("cats")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="it holds none"):
        load_images(str(tmp_path / "empty"))
    (tmp_path / "a.png").write_text("not a picture")
    with pytest.raises(BadInput, match=r"a\.png: not an image"):
        load_images(str(tmp_path))
    np.savez(tmp_path / "floats.npz", images=np.zeros((2, 4, 4)))
    with pytest.raises(BadInput, match="wanted 'images' uint8"):
        load_images(str(tmp_path / "floats.npz"))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "floats.npz").read_bytes()[:-40])
    np.savez(tmp_path / "none.npz", images=np.zeros((0, 4, 4), np.uint8))
    np.save(tmp_path / "array.npy", np.zeros((2, 4, 4), np.uint8))
    (tmp_path / "void.npz").touch()
    for name in ("cut.npz", "none.npz", "array.npy", "void.npz"):
        with pytest.raises(BadInput, match=name):
            load_images(str(tmp_path / name))
    np.savez(tmp_path / "objects.npz", images=np.array([{}], dtype=object))
    with pytest.raises(BadInput, match=r"objects\.npz"):
        load_images(str(tmp_path / "objects.npz"))


def test_pictures_of_sixteen_bits_are_refused_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(BadInput, match=r"deep\.png: wanted 8 bits"):
        load_images(str(tmp_path))


def test_pictures_of_different_sizes_are_refused(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    Image.new("L", (4, 5)).save(tmp_path / "b.png")
    with pytest.raises(BadInput, match=r"b\.png: wanted \[1, 4, 4\]"):
        load_images(str(tmp_path))
