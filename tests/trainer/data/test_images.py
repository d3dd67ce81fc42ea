import gzip
import json
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZIP_BZIP2, ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.common.errors import BadInput
from pipeline.common.image_grid import to_bytes
from trainer.data import pictures
from trainer.data.image_set import ImageSet, to_float
from trainer.data.images import load_images

Bytes = NDArray[np.uint8]


def random_bytes(*shape: int) -> Bytes:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def png(pixels: Bytes) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write_zip(path: Path, files: dict[str, bytes]) -> str:
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(path)


def write_folder(path: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return str(path)


def idx(array: Bytes) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_idx(path: Path, array: Bytes) -> str:
    path.write_bytes(gzip.compress(idx(array)) if path.suffix == ".gz" else idx(array))
    return str(path)


def refusal(source: str) -> str:
    with pytest.raises(BadInput) as caught:
        load_images(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
    with pytest.raises(
        BadInput, match=r"no image set 'cats': wanted digits, hf:NAME.*, an \.npy, \.npz, \.zip or IDX file or a folder"
    ):
        load_images("cats")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="it holds none"):
        load_images(str(tmp_path / "empty"))
    (tmp_path / "a.png").write_text("not a picture")
    with pytest.raises(BadInput, match=r"a\.png: not an image"):
        load_images(str(tmp_path))
    np.savez(tmp_path / "counts.npz", images=np.zeros((2, 4, 4), np.int32))
    with pytest.raises(BadInput, match="wanted 'images' uint8"):
        load_images(str(tmp_path / "counts.npz"))
    np.savez(tmp_path / "floats.npz", images=np.zeros((2, 4, 4)))
    with pytest.raises(BadInput, match="wanted finite values that differ"):
        load_images(str(tmp_path / "floats.npz"))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "floats.npz").read_bytes()[:-40])
    np.savez(tmp_path / "none.npz", images=np.zeros((0, 4, 4), np.uint8))
    np.save(tmp_path / "array.npy", np.zeros((2, 4, 4), np.int32))
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
    with pytest.raises(BadInput, match=r"b\.png: wanted \[4, 4\] \(height, width\) as in a\.png; it is \[5, 4\]"):
        load_images(str(tmp_path))


@pytest.mark.parametrize(
    ("key", "label_key"),
    [("images", "labels"), ("x", "y"), ("x", "labels"), ("arr_0", "arr_1"), ("x_train", "y_train"), ("x_train", "y")],
)
def test_an_npz_may_call_its_arrays_by_the_usual_names(key: str, label_key: str, tmp_path: Path) -> None:
    pixels = random_bytes(3, 4, 4, 3)
    arrays: dict[str, Any] = {key: pixels, label_key: np.array([2, 0, 1])}
    np.savez(tmp_path / "set.npz", **arrays)
    found = load_images(str(tmp_path / "set.npz"))
    np.testing.assert_array_equal(found.images, pixels.transpose(0, 3, 1, 2))
    assert found.labels.tolist() == [2, 0, 1]


def test_statistics_beside_the_images_of_an_npz_are_no_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "adm.npz", arr_0=random_bytes(3, 4, 4, 3), mu=np.zeros(3), y=np.zeros(3, np.int64))
    assert load_images(str(tmp_path / "adm.npz")).labels.tolist() == [-1, -1, -1]


def test_what_an_npz_holds_beside_its_images_is_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=random_bytes(3, 4, 4, 3), label=np.arange(3))
    (note,) = load_images(str(tmp_path / "set.npz")).notes
    assert note == "arrays that are not read: label; labels would be read from labels"


def test_channels_may_come_first_in_an_npz(tmp_path: Path) -> None:
    last = random_bytes(5, 8, 6, 3)
    for name, pixels in (("last", last), ("first", last.transpose(0, 3, 1, 2))):
        np.savez(tmp_path / f"{name}.npz", images=pixels)
        np.testing.assert_array_equal(load_images(str(tmp_path / f"{name}.npz")).images, last.transpose(0, 3, 1, 2))
    np.savez(tmp_path / "square.npz", images=random_bytes(5, 3, 8, 3))  # three rows of three channels
    assert load_images(str(tmp_path / "square.npz")).shape == (3, 3, 8)


@pytest.mark.parametrize("labels", [[-5, 0], [2**63 - 1, 0], np.array([2**64 - 1, 0], np.uint64)], ids=str)
def test_labels_out_of_range_are_refused(tmp_path: Path, labels: Any) -> None:
    np.savez(tmp_path / "set.npz", images=random_bytes(2, 4, 4, 3), labels=labels)
    with pytest.raises(BadInput, match=r"set\.npz, labels: wanted classes from 0 on, -1 for none; they are"):
        load_images(str(tmp_path / "set.npz"))


def test_labels_of_an_npz_are_one_whole_number_for_each_image(tmp_path: Path) -> None:
    for labels in (np.zeros(2, np.int64), np.zeros((3, 10), np.int64), np.array([0.5, 1, 2])):
        np.savez(tmp_path / "set.npz", images=random_bytes(3, 4, 4), labels=labels)
        assert "wanted 'labels' integer [3]" in refusal(str(tmp_path / "set.npz"))


def test_the_digest_of_a_folder_is_that_of_its_bytes_and_labels(tmp_path: Path) -> None:
    # As recorded before there were other sources: a resumed run compares it.
    pixels = np.arange(3 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2, 3)
    write_folder(tmp_path, {"b/0.png": png(pixels[0]), "a/1.png": png(pixels[1]), "2.png": png(pixels[2])})
    assert load_images(str(tmp_path)).sha256 == "8fbe47498b472d91936313c5f9d503ce2e0f0a7e4a684f698601b7262fdbdffc"


def test_a_zip_of_pictures_is_the_folder_it_would_unpack_to(tmp_path: Path) -> None:
    pixels = random_bytes(5, 6, 5, 3)
    # A path sorts by its parts: "a/..." comes before "a-b/...", which as text it would not.
    names = ["a-b/0.png", "a/1.png", "a/deep/2.png", "3.png", "b/4.PNG"]
    files = {name: png(picture) for name, picture in zip(names, pixels, strict=True)}
    folder = load_images(write_folder(tmp_path / "folder", files))
    zipped = load_images(write_zip(tmp_path / "set.zip", files))
    assert zipped.labels.tolist() == folder.labels.tolist() == [-1, 0, 1, 2, 3]
    np.testing.assert_array_equal(zipped.images[1], pixels[1].transpose(2, 0, 1))
    assert zipped.sha256 == folder.sha256
    assert (zipped.name, folder.name) == ("set", "folder")


def test_what_is_hidden_or_no_picture_is_left_out(tmp_path: Path) -> None:
    files = {"a/0.png": png(random_bytes(4, 4)), "a/notes.txt": b"notes"}
    clutter = {"__MACOSX/a/._0.png": b"fork", "a/._0.png": b"fork", ".thumbnails/0.png": png(random_bytes(2, 2))}
    alone = load_images(write_zip(tmp_path / "alone.zip", files))
    assert len(alone) == 1
    assert load_images(write_zip(tmp_path / "cluttered.zip", files | clutter)).sha256 == alone.sha256
    # Only what is hidden inside the folder: the way to it may lead through .cache.
    assert load_images(write_folder(tmp_path / ".cache" / "set", files | clutter)).sha256 == alone.sha256


def test_dataset_json_gives_the_classes_of_a_zip_and_of_a_folder(tmp_path: Path) -> None:
    names = ["00000/img00000000.png", "00000/img00000001.png", "00001/img00001000.png"]
    files = {name: png(picture) for name, picture in zip(names, random_bytes(3, 4, 4, 3), strict=True)}
    labels = {"labels": [[names[2], 3], [names[0], 7], [names[1], 0], ["removed.png", 1]], "made by": "dataset_tool"}
    indexed = files | {"dataset.json": json.dumps(labels).encode()}
    zipped = load_images(write_zip(tmp_path / "set.zip", indexed))
    assert zipped.labels.tolist() == [7, 0, 3]
    assert load_images(write_folder(tmp_path / "folder", indexed)).sha256 == zipped.sha256
    wrapped = {f"cifar/{name}": content for name, content in indexed.items()}
    assert load_images(write_zip(tmp_path / "wrapped.zip", wrapped)).sha256 == zipped.sha256
    without = files | {"dataset.json": b'{"labels": null}'}
    assert load_images(write_zip(tmp_path / "without.zip", without)).labels.tolist() == [-1, -1, -1]


def test_dataset_json_speaks_of_every_picture_or_of_none(tmp_path: Path) -> None:
    files = {f"{i}.png": png(random_bytes(4, 4)) for i in range(3)}
    index = files | {"dataset.json": b'{"labels": [["1.png", 0]]}'}
    said = refusal(write_zip(tmp_path / "set.zip", index))
    assert "set.zip/dataset.json: wanted a label for each of 3 images; 2 have none, 0.png the first" in said


@pytest.mark.parametrize(
    "content",
    [b"{", b"{}", b"[]", b"\xff", b'{"labels": [["0.png"]]}', b'{"labels": [["0.png", [0, 1]]]}']
    + [b'{"labels": [["0.png", %s]]}' % label for label in (b"-1", b"1.5", b"true", b'"cat"', b"1" + 30 * b"0")],
)
def test_a_dataset_json_of_another_form_is_refused(content: bytes, tmp_path: Path) -> None:
    files = {"0.png": png(random_bytes(4, 4)), "dataset.json": content}
    assert "as EDM's dataset_tool writes it" in refusal(write_zip(tmp_path / "set.zip", files))


def test_a_damaged_zip_is_named(tmp_path: Path) -> None:
    whole = Path(write_zip(tmp_path / "whole.zip", {"0.png": png(random_bytes(16, 16))})).read_bytes()
    damaged = tmp_path / "damaged.zip"
    for content in (b"", b"not a zip", whole[:-30], whole[:60] + bytes(40) + whole[100:]):
        damaged.write_bytes(content)
        assert "damaged.zip" in refusal(str(damaged))
    assert "it holds none" in refusal(write_zip(tmp_path / "empty.zip", {"notes.txt": b""}))
    files = {"0.png": png(random_bytes(4, 4)), "1.png": png(random_bytes(4, 5))}
    assert "1.png: wanted [4, 4] (height, width) as in 0.png" in refusal(write_zip(damaged, files))


def test_a_picture_of_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    assert "0.png: wanted a picture of at most 100 pixels; it has 16x16" in refusal(
        write_zip(tmp_path / "bomb.zip", {"0.png": png(random_bytes(16, 16))})
    )


def test_netpbm_pictures_are_pictures(tmp_path: Path) -> None:
    write_folder(tmp_path, {f"{i}.ppm": b"P6 2 1 255\n" + bytes([i, 1, 2, 3, 4, 5]) for i in range(2)})
    assert load_images(str(tmp_path)).images.tolist() == [[[[i, 3]], [[1, 4]], [[2, 5]]] for i in range(2)]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", ["train-{}-idx{}-ubyte", "t10k-{}.idx{}-ubyte"])
def test_idx_files_have_their_labels_beside_them(name: str, suffix: str, tmp_path: Path) -> None:
    pixels, labels = random_bytes(5, 4, 3), np.array([9, 0, 3, 3, 255], np.uint8)
    images = write_idx(tmp_path / (name.format("images", 3) + suffix), pixels)
    assert load_images(images).labels.tolist() == [-1] * 5
    write_idx(tmp_path / (name.format("labels", 1) + ".gz"), labels)
    found = load_images(images)
    np.testing.assert_array_equal(found.images[:, 0], pixels)
    assert found.labels.tolist() == labels.tolist()
    assert found.name == name.format("images", 3)


def test_idx_files_of_two_and_four_dimensions_are_images(tmp_path: Path) -> None:
    pixels = random_bytes(5, 4, 4, 3)
    colour = load_images(write_idx(tmp_path / "images-idx4-ubyte", pixels))
    np.testing.assert_array_equal(colour.images, pixels.transpose(0, 3, 1, 2))
    flat = load_images(write_idx(tmp_path / "images-idx2-ubyte", pixels[..., 0].reshape(5, 16)))
    np.testing.assert_array_equal(flat.images[:, 0], pixels[..., 0])
    for shape in ((5, 15), (5, 3, 4, 4)):
        assert "in one of these shapes" in refusal(write_idx(tmp_path / "images-idx2-ubyte", random_bytes(*shape)))


def test_a_file_that_is_not_idx_or_not_whole_is_named(tmp_path: Path) -> None:
    images, whole = tmp_path / "train-images-idx3-ubyte", idx(random_bytes(5, 4, 4))
    for content in (b"", whole[:3], b"\0\0\x0d\x03" + whole[4:], idx(random_bytes(5)), b"PK" + whole):
        images.write_bytes(content)
        assert "begins with 00000802 or 00000803 or 00000804; it begins with" in refusal(str(images))
    for content in (whole[:9], whole[:-1], whole + b"0"):
        images.write_bytes(content)
        assert "download it again" in refusal(str(images))
    packed = gzip.compress(whole)
    for content in (packed[:-9], packed[:12] + b"????" + packed[16:]):
        images.write_bytes(content)
        assert "train-images-idx3-ubyte: cannot be read" in refusal(str(images))
    assert "uint8 [0, 4, 4]" in refusal(write_idx(images, random_bytes(0, 4, 4)))


def test_idx_labels_are_checked_too(tmp_path: Path) -> None:
    images = write_idx(tmp_path / "train-images-idx3-ubyte", random_bytes(5, 4, 4))
    labels = tmp_path / "train-labels-idx1-ubyte"
    write_idx(labels, random_bytes(4))
    assert "wanted 'labels' integer [5]" in refusal(images)
    labels.write_bytes(b"nonsense")
    assert "train-labels-idx1-ubyte: wanted an IDX file" in refusal(images)


def colour() -> Image.Image:
    return Image.fromarray(random_bytes(8, 8, 3))


def test_every_format_is_read_by_its_suffix_or_its_first_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.tif", "c.TIFF", "d.gif", "e.tga", "f.bmp", "g.webp", "h.qoi"):
        colour().save(tmp_path / name)
    for name in ("i.jfif", "j.jpe", "no-suffix", "other.jpg_large"):
        colour().save(tmp_path / name, "JPEG")
    found = load_images(str(tmp_path))
    assert found.images.shape == (12, 3, 8, 8)
    assert found.notes == ()


def test_what_is_left_out_is_counted_by_kind(tmp_path: Path) -> None:
    files = {f"{i}.txt": b"notes" for i in range(3)} | {"a.eps": b"%!PS", "README": b"", ".hidden.png": b""}
    found = load_images(write_folder(tmp_path, files | {"a.png": png(random_bytes(4, 4))}))
    kinds = "3 .txt (0.txt), 1 hidden (.hidden.png), 1 without a suffix (README), 1 .eps (a.eps)"
    assert found.notes == (f"6 files left out, no pictures: {kinds}",)


def test_folders_behind_links_are_read_and_loops_end(tmp_path: Path) -> None:
    write_folder(tmp_path / "store", {"cats/0.png": png(random_bytes(4, 4))})
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "store" / "cats")
    (tmp_path / "store" / "cats" / "again").symlink_to(tmp_path / "set")
    assert load_images(str(tmp_path / "set")).classes[0].name == "cat"
    (tmp_path / "set" / "lost.png").symlink_to(tmp_path / "nowhere")
    assert "lost.png" in refusal(str(tmp_path / "set"))
    assert "a broken link" in refusal(str(tmp_path / "set"))


def test_pictures_are_turned_as_their_orientation_tag_says(tmp_path: Path) -> None:
    upright = np.zeros((4, 8, 3), np.uint8)
    upright[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the file's rows are columns of the picture
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(upright).save(tmp_path / "upright.png")
    found = load_images(str(tmp_path))
    np.testing.assert_array_equal(found.images[0], found.images[1])


@pytest.mark.parametrize(
    ("modes", "channels"),
    [
        (("RGB", "L"), 3),
        (("L", "RGB"), 3),
        (("L", "LA", "1"), 1),
        (("L", "grey palette"), 1),
        (("P", "L"), 3),
        (("RGB", "RGBA", "CMYK"), 3),
    ],
)
def test_a_set_is_grey_only_if_every_picture_is(modes: tuple[str, ...], channels: int, tmp_path: Path) -> None:
    for i, mode in enumerate(modes):
        image = colour().convert("L").convert("P") if mode == "grey palette" else colour().convert(mode)
        image.save(tmp_path / f"{i}.tif")
    assert load_images(str(tmp_path)).images.shape == (len(modes), channels, 8, 8)


def test_grey_before_colour_keeps_its_pixels(tmp_path: Path) -> None:
    grey = random_bytes(8, 8)
    write_folder(tmp_path, {"a.png": png(grey), "b.png": png(random_bytes(8, 8, 3))})
    np.testing.assert_array_equal(load_images(str(tmp_path)).images[0], np.stack([grey] * 3))


def test_lost_transparency_and_frames_are_noted(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (1, 2, 3, 4)).save(tmp_path / "a.png")
    Image.new("RGBA", (8, 8), (1, 2, 3, 255)).save(tmp_path / "b.png")
    colour().save(tmp_path / "c.gif", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    notes = load_images(str(tmp_path)).notes
    assert [note.split(" (")[0] for note in notes] == [
        "1 of 3 pictures are transparent: transparency is dropped",
        "1 of 3 pictures are of several frames: the first is read",
    ]


def test_numbered_folders_are_classes_in_natural_order(tmp_path: Path) -> None:
    files = {f"{number}/0.png": png(np.full((4, 4), number, np.uint8)) for number in range(12)}
    found = load_images(write_folder(tmp_path, files))
    assert found.images[:, 0, 0, 0].tolist() == found.labels.tolist()
    assert [one.name for one in found.classes] == [str(number) for number in range(12)]
    assert "12 classes: 0 0 (1), 1 1 (1)" in str(found)


def test_the_table_of_many_classes_is_cut() -> None:
    assert str(load_images("digits")).startswith("digits: 1797 images of [1, 8, 8], 10 classes: 0 (178), 1 (182), ")
    many = ImageSet("many", random_bytes(1000, 1, 1, 1), np.arange(1000))
    assert str(many).endswith("8 (1), 9 (1), ..., 999 (1)")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", ["list", "dict", "windows"])
def test_dataset_json_may_be_of_windows_or_a_mapping(form: str, encoding: str, tmp_path: Path) -> None:
    names = [f"00000/{i}.png" for i in range(3)]
    files = {name: png(random_bytes(4, 4)) for name in names}
    labels: Any = [[name, i] for i, name in enumerate(names)]
    if form == "dict":
        labels = dict(labels)
    if form == "windows":
        labels = [[name.replace("/", "\\"), label] for name, label in labels]
    files["dataset.json"] = json.dumps({"labels": labels}).encode(encoding)
    assert load_images(write_zip(tmp_path / "set.zip", files)).labels.tolist() == [0, 1, 2]


def test_a_zip_of_windows_has_folders(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("cat", "dog"):
            entry = ZipInfo("x")
            entry.filename = f"{name}\\0.png"
            archive.writestr(entry, png(random_bytes(4, 4)))
    assert load_images(str(tmp_path / "set.zip")).class_names == ("cat", "dog")


def test_gigabytes_of_zeros_are_refused_unread(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "bomb.zip", "w", ZIP_DEFLATED) as archive, archive.open("0.png", "w") as file:
        for _ in range(65):
            file.write(bytes(2**20))
    assert "0.png: wanted a file of at most 67.1 MB" in refusal(str(tmp_path / "bomb.zip"))
    with ZipFile(tmp_path / "bzip2.zip", "w", ZIP_BZIP2) as archive:
        archive.writestr("0.png", png(random_bytes(4, 4)))
    assert "0.png is packed by another method than deflate" in refusal(str(tmp_path / "bzip2.zip"))


def test_headers_that_claim_more_than_their_file_are_refused(tmp_path: Path) -> None:
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 4, 4)})
    write_zip(tmp_path / "huge.npz", {"images.npy": header.getvalue()})
    assert "array images has 128 bytes, its header says 16000000000128" in refusal(str(tmp_path / "huge.npz"))
    claim = bytes([0, 0, 8, 3]) + np.array([2**31, 2**10, 2**10], ">u4").tobytes()
    for name, content in {"a-ubyte": claim, "a-ubyte.gz": gzip.compress(claim)}.items():
        (tmp_path / name).write_bytes(content)
        assert f"wanted {2**51 + 16} bytes" in refusal(str(tmp_path / name))


class FakeRows:
    """What load_images uses of a datasets.Dataset."""

    def __init__(self, columns: dict[str, list[Any]], features: dict[str, object], split: str | None = None) -> None:
        self.columns, self.features, self.split = columns, features, split

    def with_format(self, _: None) -> "FakeRows":
        return self

    def select_columns(self, names: list[str]) -> "FakeRows":
        return FakeRows({name: self.columns[name] for name in names}, self.features)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(zip(self.columns, row, strict=True)) for row in zip(*self.columns.values(), strict=True))

    def __getitem__(self, _: slice) -> dict[str, list[Any]]:
        return self.columns


@pytest.fixture
def fake_datasets(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    fake = SimpleNamespace(Image=type("Image", (), {}), ClassLabel=type("ClassLabel", (), {}), stored={})
    fake.load_dataset = lambda name, split: fake.stored[name][split]
    fake.load_from_disk = lambda name: fake.stored[name]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return fake


def fake_rows(fake: SimpleNamespace, pixels: Bytes, split: str | None = None) -> FakeRows:
    columns: dict[str, list[Any]] = {
        "text": list("abc"),
        "img": [Image.fromarray(picture) for picture in pixels],
        "kind": [1, None, 0],
    }
    return FakeRows(columns, {"text": object(), "img": fake.Image(), "kind": fake.ClassLabel()}, split)


def test_hugging_face_columns_are_found_by_their_types_in_a_fake_module(fake_datasets: SimpleNamespace) -> None:
    pixels = random_bytes(3, 4, 4, 3)
    fake_datasets.stored["someone/cats"] = {
        "train": fake_rows(fake_datasets, pixels),
        "train[:3]": fake_rows(fake_datasets, 255 - pixels),
    }
    found = load_images("hf:someone/cats")
    np.testing.assert_array_equal(found.images, pixels.transpose(0, 3, 1, 2))
    assert found.labels.tolist() == [1, -1, 0]
    np.testing.assert_array_equal(load_images("hf:someone/cats:train[:3]").images, 255 - found.images)
    assert "hf:someone/cats:validation: cannot be loaded" in refusal("hf:someone/cats:validation")
    assert "hf:dogs: cannot be loaded with split 'train'" in refusal("hf:dogs")


@pytest.mark.parametrize(
    ("dtype", "values", "labels"),
    [("int64", [2, 0, 1], [2, 0, 1]), ("string", ["10", "9", None], [1, 0, -1]), ("uint8", [7, 7, 7], [7, 7, 7])],
)
def test_hugging_face_columns_of_numbers_or_names_are_classes_with_a_fake_module(
    dtype: str, values: list[Any], labels: list[int], fake_datasets: SimpleNamespace
) -> None:
    images = [Image.fromarray(picture) for picture in random_bytes(3, 4, 4)]
    columns = {"image": images, "label": values, "other": values}
    features = {"image": fake_datasets.Image(), "label": SimpleNamespace(dtype=dtype)}
    features["other"] = features["label"]
    fake_datasets.stored["set"] = {"train": FakeRows(columns, features)}
    assert load_images("hf:set").labels.tolist() == labels
    assert load_images("hf:set#other").labels.tolist() == labels
    assert "'image' is none, label, other is" in refusal("hf:set:train#image")


def test_a_hugging_face_column_that_is_not_taken_is_noted_with_a_fake_module(fake_datasets: SimpleNamespace) -> None:
    images = [Image.fromarray(picture) for picture in random_bytes(3, 4, 4)]
    columns: dict[str, list[Any]] = {"image": images, "label": [0.5, 1.5, 2.5]}
    features = {"image": fake_datasets.Image(), "label": SimpleNamespace(dtype="float64")}
    fake_datasets.stored["set"] = {"train": FakeRows(columns, features)}
    found = load_images("hf:set")
    assert found.labels.tolist() == [-1, -1, -1]
    assert found.notes == ("no column is taken for classes, of label; hf:NAME:SPLIT#COLUMN takes one",)


def test_saved_hugging_face_folders_have_splits_in_a_fake_module(
    fake_datasets: SimpleNamespace, tmp_path: Path
) -> None:
    name, rows = str(tmp_path), fake_rows(fake_datasets, random_bytes(3, 4, 4))
    (tmp_path / "dataset_dict.json").touch()
    fake_datasets.stored[name] = {"test": rows}
    assert load_images(f"hf:{name}:test").shape == (1, 4, 4)
    assert "wanted split 'train'; it has test" in refusal(f"hf:{name}")
    fake_datasets.stored[name] = rows
    assert len(load_images(f"hf:{name}")) == 3
    fake_datasets.stored[name] = fake_rows(fake_datasets, random_bytes(3, 4, 4), split="test")
    assert "wanted split 'train'; it has test" in refusal(f"hf:{name}")


def test_hugging_face_rows_without_pictures_are_refused_with_a_fake_module(fake_datasets: SimpleNamespace) -> None:
    rows = fake_rows(fake_datasets, random_bytes(3, 4, 4))
    fake_datasets.stored["texts"] = {"train": FakeRows(rows.columns, {"text": object()})}
    assert "hf:texts: wanted rows with a column of type Image; it has 3 rows of text" in refusal("hf:texts")
    rows.columns["img"][1] = None
    fake_datasets.stored["gaps"] = {"train": rows}
    assert "hf:gaps, row 1: not an image" in refusal("hf:gaps")


def test_without_its_package_hugging_face_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert refusal("hf:mnist") == "hf:mnist: wanted the package datasets; pip install datasets"
