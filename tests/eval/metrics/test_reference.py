import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from eval.features import weights
from eval.features.spaces import Extracted, FeatureSpace, load_space
from eval.features.weights import Unavailable
from eval.metrics import distances
from eval.metrics import reference as module
from eval.metrics.distances import Moments, moments
from eval.metrics.reference import OpenedReference, build, check_shape, open_reference
from pipeline.common.errors import BadInput
from pipeline.common.image_grid import to_bytes
from pipeline.dataset.reader import BlockReader
from pipeline.generation.generate import GenerateConfig, generate
from tests.support.images import pictures, save_pngs
from tests.support.inception import save_inception
from tests.support.problems import folder_of
from tests.support.serving import serve
from tests.support.spaces import small_space

CPU = torch.device("cpu")
NUM_FEATURES = 4


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(weights.FOLDER, str(tmp_path / "weights"))
    monkeypatch.setenv("TRAFLOW_OFFLINE", "1")


class Counted:
    """`small_space` under another name, that counts the images it is shown."""

    def __init__(self, name: str = "quarters", **changes: Any) -> None:
        self.num_images = 0
        self._inner = small_space(CPU)
        self.space: FeatureSpace = replace(self._inner, name=name, extract=self.extract, **changes)

    def extract(self, images: NDArray[np.uint8]) -> Extracted:
        self.num_images += len(images)
        return self._inner.extract(images)


def features_of(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return small_space(CPU).extract(images).features


def save_statistics(path: Path, length: int = NUM_FEATURES, **more: Any) -> Moments:
    """As EDM's fid.py saves them."""
    given = moments(np.random.default_rng(1).normal(100, 9, (50, length)).astype(np.float32))
    np.savez(path, mu=given.mean, sigma=given.covariance, **more)
    return given


def assert_same(found: Moments, wanted: Moments) -> None:
    np.testing.assert_allclose(found.mean, wanted.mean)
    np.testing.assert_allclose(found.covariance, wanted.covariance)


def only(opened: OpenedReference) -> distances.ReferenceStats:
    (found,) = opened.stats.values()
    return found


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_a_folder_are_measured(tmp_path: Path, channels: int) -> None:
    images = pictures(9, size=8)[:, :channels]
    for number, image in enumerate(images):
        Image.fromarray(image[0] if channels == 1 else image.transpose(1, 2, 0)).save(tmp_path / f"{number}.png")
    opened = open_reference(str(tmp_path), [Counted().space])
    assert opened.reference.num_images == 9
    assert opened.reference.shape == (channels, 8, 8)
    assert opened.reference.source == str(tmp_path)
    found = only(opened)
    assert_same(found.moments, moments(features_of(images)))
    np.testing.assert_array_equal(found.features, features_of(images))
    assert found.num_images == 9
    grey = "Grey images are repeated to three channels for quarters."
    assert opened.notes == ((grey,) if channels == 1 else ())


def test_values_of_one_channel_are_no_grey_images(tmp_path: Path) -> None:
    np.save(tmp_path / "sound.npy", np.linspace(-1, 1, 72, dtype=np.float32).reshape(9, 1, 8))
    assert open_reference(str(tmp_path / "sound.npy"), [load_space("values", CPU)]).notes == ()


def test_digits_are_a_reference_in_their_own_space() -> None:
    opened = open_reference("digits", [load_space("digits", CPU)])
    assert opened.reference.num_images == 1797
    assert opened.notes == ()
    assert only(opened).space == "digits"


def test_the_identity_of_images_is_that_of_their_pixels(tmp_path: Path) -> None:
    images = pictures(6, size=8)
    save_pngs(tmp_path / "a", images)
    np.savez(tmp_path / "b.npz", images=images.transpose(0, 2, 3, 1))
    np.savez(tmp_path / "c.npz", images=images[::-1].transpose(0, 2, 3, 1))
    digests = [open_reference(str(tmp_path / name), []).reference.sha256 for name in ("a", "b.npz", "c.npz")]
    assert digests[0] == digests[1] != digests[2]


def test_a_large_reference_keeps_features_from_all_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(distances, "MAX_MANIFOLD_SIZE", 10)
    monkeypatch.setattr(module, "BATCH_SIZE", 7)
    images = pictures(35, size=8)
    np.savez(tmp_path / "a.npz", images=images.transpose(0, 2, 3, 1))
    found = only(open_reference(str(tmp_path / "a.npz"), [Counted().space]))
    np.testing.assert_array_equal(found.features, features_of(images[distances.kept_rows(35)]))
    assert_same(found.moments, moments(features_of(images)))
    assert found.num_images == 35


def test_the_samples_of_a_data_set_are_quantised_as_those_of_a_student(tmp_path: Path) -> None:
    manifest = generate(
        GenerateConfig.model_validate(
            {"teacher": "tests.support.problems:gaussian", "n": 40, "out": tmp_path / "data", "executor": "inline"}
            | {"shard_size": 16, "batch_size": 8, "block_size": 4, "states": 1}
        )
    )
    reader = BlockReader(manifest)
    samples = np.concatenate([reader.read(block).sample for block in range(manifest.blocks.num_rows)])
    opened = open_reference(str(folder_of(manifest)), [Counted().space])
    assert_same(only(opened).moments, moments(features_of(to_bytes(samples.astype(np.float32)))))
    assert opened.reference.num_images == 40
    assert opened.reference.sha256 == manifest.sha256
    assert "gaussian" in opened.reference.title


@pytest.mark.parametrize("more", [{}, {"mu_s": np.zeros(7), "sigma_s": np.zeros((7, 7))}], ids=["edm", "adm"])
def test_published_statistics_serve_legacy_tensorflow_and_no_other_space(tmp_path: Path, more: dict[str, Any]) -> None:
    path = tmp_path / "cifar10-32x32.npz"
    given = save_statistics(path, **more)
    spaces = [Counted("inception-tf").space, Counted("inception").space]
    opened = open_reference(str(path), spaces)
    assert list(opened.stats) == ["inception-tf"]
    assert_same(only(opened).moments, given)
    assert only(opened).features is None
    assert opened.reference.num_images is None
    assert opened.reference.shape is None
    assert [entry.metrics[0] for entry in opened.not_computed] == ["fid"]
    with pytest.raises(BadInput, match="wanted a reference in inception"):
        open_reference(str(path), spaces[1:])


def test_adms_batches_have_images_for_all_that_statistics_do_not_tell(tmp_path: Path) -> None:
    images, path = pictures(12, size=8), tmp_path / "VIRTUAL_imagenet64.npz"
    given = save_statistics(path, arr_0=images.transpose(0, 2, 3, 1))
    opened = open_reference(str(path), [Counted("inception-tf").space, Counted("inception").space])
    tensorflow, clean = opened.stats["inception-tf"], opened.stats["inception"]
    assert_same(tensorflow.moments, given)
    assert_same(clean.moments, moments(features_of(images)))
    for found in (tensorflow, clean):
        np.testing.assert_array_equal(found.features, features_of(images))
    assert opened.reference.num_images == 12
    assert "the statistics in VIRTUAL_imagenet64.npz" in opened.notes[0]


def test_statistics_of_another_length_are_refused_in_a_line(tmp_path: Path) -> None:
    save_statistics(tmp_path / "s.npz", length=6)
    with pytest.raises(BadInput, match=r"wanted statistics of the 4 features of inception-tf; they are of 6$"):
        open_reference(str(tmp_path / "s.npz"), [Counted("inception-tf").space])


@pytest.mark.parametrize(
    "arrays",
    [
        {"mu": np.zeros(4), "sigma": np.zeros((4, 3))},
        {"mu": np.zeros((1, 4)), "sigma": np.zeros((4, 4))},
        {"mu": np.full(4, np.nan), "sigma": np.zeros((4, 4))},
        {"mu": np.zeros(4, int), "sigma": np.zeros((4, 4))},
    ],
)
def test_statistics_that_are_none_are_refused(tmp_path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    np.savez(tmp_path / "s.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"wanted (finite floating-point )?statistics"):
        open_reference(str(tmp_path / "s.npz"), [Counted("inception-tf").space])


def test_a_pickle_inside_statistics_is_not_executed(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", mu=np.array([print], object), sigma=np.zeros((1, 1)))
    with pytest.raises(BadInput, match=r"wanted an \.npz of statistics"):
        open_reference(str(tmp_path / "s.npz"), [Counted("inception-tf").space])


def test_clean_fids_statistics_are_had_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in weights.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    site = tmp_path / "site"
    site.mkdir()
    clean = save_statistics(site / "toy_clean_train_32.npz")
    tensorflow = save_statistics(site / "toy_legacy_tensorflow_train_32.npz")
    feats = np.random.default_rng(0).normal(size=(20, NUM_FEATURES)).astype(np.float32)
    np.savez(site / "toy_clean_train_32_kid.npz", feats=feats)
    spaces = [Counted(name).space for name in ("inception", "inception-tf", "quarters")]
    with serve(site) as address:
        monkeypatch.setattr(module, "CLEAN_FID_STATISTICS", address)
        opened = open_reference("cleanfid:Toy/train/32", spaces)
    assert_same(opened.stats["inception"].moments, clean)
    assert_same(opened.stats["inception-tf"].moments, tensorflow)
    np.testing.assert_array_equal(opened.stats["inception"].features, feats)
    assert opened.stats["inception-tf"].features is None  # there is no such file
    assert opened.reference.shape == (3, 32, 32)
    assert [entry.metrics[0] for entry in opened.not_computed] == ["fd-quarters"]
    again = open_reference("cleanfid:toy/train/32", spaces[:1])  # the server is gone
    assert_same(only(again).moments, clean)


def test_clean_fids_statistics_that_are_not_here_say_which_file(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"cifar10_clean_train_32\.npz"):
        open_reference("cleanfid:cifar10/train/32", [Counted("inception").space])
    with pytest.raises(BadInput, match="wanted cleanfid:NAME/SPLIT/RES"):
        open_reference("cleanfid:cifar10", [Counted("inception").space])


def test_a_reference_is_built_once_and_found_by_its_images(tmp_path: Path) -> None:
    images, counted = pictures(12, size=8), Counted()
    folder = save_pngs(tmp_path / "images", images)
    (path,) = build(folder, [counted.space])
    assert path.parent == tmp_path / "cache" / "traflow-pipeline" / "references"
    assert counted.num_images == 12
    np.savez(tmp_path / "same.npz", images=images.transpose(0, 2, 3, 1))
    found = only(open_reference(str(tmp_path / "same.npz"), [counted.space]))
    assert counted.num_images == 12
    np.testing.assert_array_equal(found.features, features_of(images))
    assert_same(found.moments, moments(features_of(images)))


@pytest.mark.parametrize("change", [{"sha256": "1" * 64}, {"resizer": "another"}])
def test_a_reference_of_other_weights_or_another_resizer_is_never_used(tmp_path: Path, change: dict[str, str]) -> None:
    folder, counted = save_pngs(tmp_path / "images", pictures(12, size=8)), Counted()
    (path,) = build(folder, [counted.space])
    other = Counted(**change)
    open_reference(folder, [other.space])
    assert other.num_images == 12
    with pytest.raises(BadInput, match="build it again"):
        open_reference(str(path), [other.space])
    (cached,) = build(folder, [other.space])
    cached.write_bytes(path.read_bytes())  # under the other's name
    open_reference(folder, [other.space])
    assert other.num_images == 36


def test_a_damaged_file_in_the_cache_is_measured_anew(tmp_path: Path) -> None:
    folder, counted = save_pngs(tmp_path / "images", pictures(12, size=8)), Counted()
    (path,) = build(folder, [counted.space])
    path.write_bytes(path.read_bytes()[:-200])
    open_reference(folder, [counted.space])
    assert counted.num_images == 24


def test_what_took_long_to_measure_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, counted = save_pngs(tmp_path / "images", pictures(12, size=8)), Counted()
    open_reference(folder, [counted.space])
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(module, "MIN_CACHE_SECONDS", 0.0)
    for _ in range(3):
        open_reference(folder, [counted.space])
    assert counted.num_images == 24


def test_a_built_file_is_a_reference_wherever_it_lies(tmp_path: Path) -> None:
    images, counted = pictures(12, size=8), Counted()
    folder = save_pngs(tmp_path / "images", images)
    (path,) = build(folder, [counted.space], tmp_path / "new" / "ref.npz")
    assert path == tmp_path / "new" / "ref.npz"
    opened = open_reference(str(path), [counted.space, Counted("other").space])
    assert_same(only(opened).moments, moments(features_of(images)))
    from_images = open_reference(folder, [counted.space]).reference
    assert opened.reference == from_images.model_copy(update={"source": str(path)})
    assert opened.not_computed[0].metrics[0] == "fd-other"
    with pytest.raises(BadInput, match="was built for quarters"):
        open_reference(str(path), [Counted("other").space])


def test_the_command_prints_where_the_reference_is_and_of_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module.command("digits", ["digits"], tmp_path / "ref.npz", "cpu")
    printed = capsys.readouterr().out
    digest = open_reference("digits", []).reference.sha256
    assert f"{tmp_path / 'ref.npz'}: 1797 images in digits; sha256 of the images {digest}" in printed
    with pytest.raises(BadInput, match="wanted one feature space for one file"):
        module.command("digits", ["digits", "tests.support.spaces:small_space"], tmp_path / "ref.npz", "cpu")


def test_the_published_inception_can_be_measured_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both spaces of one file, through images, cache and scores but for the distance, whose root takes long."""
    save_inception(tmp_path / "weights", monkeypatch)
    spaces = [load_space("inception", CPU), load_space("inception-tf", CPU)]
    images = pictures(12, size=16)
    opened = open_reference(save_pngs(tmp_path / "images", images), spaces)
    monkeypatch.setattr(distances, "frechet_distance", lambda a, b, device: float(((a.mean - b.mean) ** 2).sum()))
    for space in spaces:
        found = distances.score(space.extract(images), opened.stats[space.name])
        assert found["fid" if space.name == "inception" else "fid-tf"] == pytest.approx(0, abs=1e-6)
        assert found[f"coverage-{space.name}"] == 1
        assert ("is" in found) is (space.name == "inception-tf")


def test_images_of_another_shape_than_the_samples_are_refused(tmp_path: Path) -> None:
    reference = open_reference(save_pngs(tmp_path / "images", pictures(6, size=8)), [Counted().space]).reference
    check_shape(reference, (3, 8, 8))
    check_shape(reference.model_copy(update={"shape": None}), (3, 64, 64))
    with pytest.raises(BadInput, match="another resolution"):
        check_shape(reference, (3, 16, 16))
    with pytest.raises(BadInput, match="another number of channels"):
        check_shape(reference, (1, 8, 8))


def test_bad_references_are_named_and_refused(tmp_path: Path) -> None:
    spaces = [Counted().space]
    few = save_pngs(tmp_path / "few", pictures(3, size=8))
    damaged = save_pngs(tmp_path / "damaged", pictures(6, size=8))
    (tmp_path / "damaged" / "00003.png").write_bytes(b"\x89PNG\r\n")
    wrong = io.BytesIO()
    np.save(wrong, np.zeros(3))
    (tmp_path / "a.npz").write_bytes(wrong.getvalue())
    for source, message in (
        (few, "wanted at least 4 images; it holds 3"),
        (damaged, r"00003\.png"),
        (str(tmp_path / "nowhere"), "nowhere: no such file or folder"),
        (str(tmp_path / "a.npz"), r"a\.npz"),
    ):
        with pytest.raises(BadInput, match=message) as caught:
            open_reference(source, spaces)
        assert "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="wanted images of"):
        open_reference(save_pngs(tmp_path / "large", pictures(6, size=16)), [load_space("digits", CPU)])
    with pytest.raises(BadInput, match="wanted spaces of different names"):
        open_reference("digits", [*spaces, *spaces])
