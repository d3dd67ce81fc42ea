import errno
import os
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from trainer.data import mapped_images, npz, pictures
from trainer.data.images import load_images
from trainer.data.stream import ImageStream

NUM_IMAGES, SIDE = 64, 64
NUM_BYTES = NUM_IMAGES * 3 * SIDE * SIDE


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every set is large enough to be mapped."""
    monkeypatch.setattr(mapped_images, "MIN_BYTES", 0)
    monkeypatch.setenv(mapped_images.FOLDER, str(tmp_path / "cache"))
    return tmp_path / "cache"


def colours() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, SIDE, SIDE, 3), dtype=np.uint8)


def write_folder(path: Path) -> Path:
    for i, pixels in enumerate(colours()):
        (path / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path / str(i % 2) / f"{i:02d}.png")
    return path


def write_npz(path: Path) -> Path:
    np.savez(path, images=colours(), labels=np.arange(NUM_IMAGES))
    return path


def write_zip(path: Path) -> Path:
    folder = write_folder(path.with_suffix(""))
    with ZipFile(path, "w") as archive:
        for file in folder.rglob("*.png"):
            archive.write(file, file.relative_to(folder))
    return path


def count_calls(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[object]:
    calls, function = list[object](), getattr(module, name)

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return function(*arguments)

    monkeypatch.setattr(module, name, counted)
    return calls


def bytes_taken(work: Callable[[], object]) -> int:
    """The most memory of this process's own that `work` held at once; mapped files are not."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_eight_ranks_decode_a_set_once_and_map_one_file(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "set")
    decoded = count_calls(monkeypatch, pictures, "_decode")
    with ThreadPoolExecutor(8) as pool:
        sets = list(pool.map(load_images, [str(folder)] * 8))
    assert len(decoded) == NUM_IMAGES
    assert all(isinstance(one.images, np.memmap) for one in sets)
    [file] = cache.rglob("images.npy")
    assert NUM_BYTES < file.stat().st_size < NUM_BYTES + 1024


@pytest.mark.parametrize(("name", "write"), [("set", write_folder), ("set.npz", write_npz), ("set.zip", write_zip)])
def test_a_mapped_set_is_the_set_in_memory_and_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Callable[[Path], Path]
) -> None:
    source = str(write(tmp_path / name))
    load_images(source)

    def read_as_a_training_does() -> None:
        images = load_images(source)
        assert len(images.sha256) == 64
        ImageStream(images, 0, seed=0, batch_size=2).batch(0)

    assert bytes_taken(read_as_a_training_does) < 0.4 * NUM_BYTES  # a batch of floats is an eighth of it
    mapped = load_images(source)
    monkeypatch.setattr(mapped_images, "MIN_BYTES", 2**40)
    whole = load_images(source)
    assert not isinstance(whole.images, np.memmap)
    np.testing.assert_array_equal(mapped.images, whole.images)
    np.testing.assert_array_equal(mapped.labels, whole.labels)
    assert (mapped.name, mapped.class_names, mapped.notes, mapped.sha256) == (
        whole.name,
        whole.class_names,
        whole.notes,
        whole.sha256,
    )


@pytest.mark.parametrize(("name", "write"), [("set", write_folder), ("set.npz", write_npz)])
def test_decoding_and_hashing_a_set_takes_no_memory_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Callable[[Path], Path]
) -> None:
    source = str(write(tmp_path / name))
    monkeypatch.setattr(npz, "PART_BYTES", NUM_BYTES // 16)
    assert bytes_taken(lambda: load_images(source).sha256) < 0.5 * NUM_BYTES


def test_a_picture_that_changes_is_decoded_again(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set")
    before = load_images(str(folder))
    Image.new("RGB", (SIDE, SIDE)).save(folder / "0" / "00.png")
    after = load_images(str(folder))
    assert after.sha256 != before.sha256
    assert not after.images[0].any()


def test_grey_pictures_before_the_first_in_colour_are_repeated(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set")
    Image.new("L", (SIDE, SIDE), 7).save(folder / "0" / "00.png")
    images = load_images(str(folder)).images
    assert images.shape == (NUM_IMAGES, 3, SIDE, SIDE)
    assert (images[0] == 7).all()


def test_what_a_crash_left_is_made_again(tmp_path: Path, cache: Path) -> None:
    folder = write_folder(tmp_path / "set")
    wanted = load_images(str(folder)).sha256
    [finished] = cache.rglob("set.json")
    finished.write_text(finished.read_text()[:20])
    (finished.parent / "images.npy").write_bytes(b"half")
    assert load_images(str(folder)).sha256 == wanted


def test_without_room_for_the_file_the_set_is_held_in_memory(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    images = load_images(str(write_folder(tmp_path / "set"))).images
    assert not isinstance(images, np.memmap)
    assert "No space left on device" in capsys.readouterr().out
    assert not list(cache.rglob("images.npy"))
