"""What samples are measured against: image sets, data sets of ours, published statistics, and references of ours.

Images that took long to measure are kept in the user's cache, by what decides the figures: the images, the feature
space, its weights and its resizer.
"""

import hashlib
import io
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval import results
from eval.features import spaces, weights
from eval.features.spaces import Features, FeatureSpace
from eval.features.weights import Unavailable
from eval.metrics import distances
from eval.metrics.distances import Moments, ReferenceStats, RunningMoments
from eval.results import NotComputed
from pipeline.common.device import pick_device
from pipeline.common.errors import BadInput, one_line, reason
from pipeline.common.image_grid import to_bytes
from pipeline.common.progress import bar, say
from pipeline.dataset.manifest import PLAN, Manifest, read_manifest
from pipeline.dataset.reader import BlockReader
from pipeline.storage.cache import cache_folder
from pipeline.storage.hashing import file_sha256
from pipeline.storage.store import open_store, write_atomic
from trainer.data.images import NPZ_KEYS, UNREADABLE, load_images

Arrays = Mapping[str, NDArray[Any]]

BATCH_SIZE = 1024  # images that are measured together
WORTH_SECONDS = 10.0  # of measuring, above which a reference is kept
BLOCKS_AHEAD = 8  # of a data set in an object store

# EDM's and ADM's statistics are of Inception with TensorFlow's own resizing.
STATISTICS_SPACE = "inception-tf"
CLEAN_FID = "cleanfid:"
CLEAN_FID_STATISTICS = "https://www.cs.cmu.edu/~clean-fid/stats"
CLEAN_FID_MODES = {"inception": "clean", "inception-tf": "legacy_tensorflow", "inception-torch": "legacy_pytorch"}


@dataclass(frozen=True)
class OpenedReference:
    """A reference in the feature spaces, by name, that it has something to say in."""

    reference: results.Reference
    measured: dict[str, ReferenceStats]
    not_computed: tuple[NotComputed, ...] = ()  # in the spaces that it says nothing in
    notes: tuple[str, ...] = ()  # for the report


@dataclass(frozen=True)
class Images:
    """Images uint8 of one shape, in batches [B, C, H, W] that come once."""

    title: str
    num_images: int
    shape: tuple[int, ...]
    sha256: str
    batches: Iterator[NDArray[np.uint8]]


def open_reference(source: str, spaces: Sequence[FeatureSpace]) -> OpenedReference:
    """The reference `source`, measured in `spaces`.

    `source` is what `load_images` takes; a folder or URL of a data set, for its teacher's samples; an .npz of EDM's or
    ADM's statistics, with images or without; `cleanfid:NAME/SPLIT/RES`; or a file of `build`.

    Raises:
        BadInput: it is none of these, or says nothing in any of `spaces`.
        Unavailable: clean-fid's statistics could not be had.
        WorkFailed: a data set that cannot be read.
    """
    _check_distinct(spaces)
    if source.startswith(CLEAN_FID):
        return _open_clean_fid(source, spaces)
    found = _read_keys(Path(source))
    if {"mu", "sigma", "space"} <= found:
        return _open_built(source, spaces)
    if {"mu", "sigma"} <= found:
        return _open_statistics(source, spaces, has_images=any(key in found for key in NPZ_KEYS))
    images = open_images(source)
    measured = _measure(source, images, spaces)
    return OpenedReference(_described(source, images), measured, notes=_notes(images.shape, spaces))


def check_shape(reference: results.Reference, shape: tuple[int, ...]) -> None:
    """Raises `BadInput` if samples of `shape` are not to be measured against `reference`."""
    found = reference.shape
    if found is None or found == shape:
        return
    why = "another number of channels" if found[1:] == shape[1:] else "another resolution"
    raise BadInput(
        f"{reference.source}: wanted a reference of images of {list(shape)}, as the samples are; "
        f"its images are of {why}, {list(found)}"
    )


def build(source: str, spaces: Sequence[FeatureSpace], out: Path | None = None) -> list[Path]:
    """Measure the images of `source`, and write a reference for each of `spaces`, to `out` or into the user's cache.

    Raises:
        BadInput: `source` holds no images, `out` is for one space alone, or cannot be written.
        WorkFailed: a data set that cannot be read.
    """
    if out is not None and len(spaces) != 1:
        raise BadInput(f"{out}: wanted one feature space for one file; there are {len(spaces)}")
    _check_distinct(spaces)
    images = open_images(source)
    paths = [out or _cached(images, space) for space in spaces]
    accumulated = _extract(source, images, spaces)
    for space, path in zip(spaces, paths, strict=True):
        try:
            _write(path, images, space, accumulated[space.name])
        except OSError as error:
            raise BadInput(f"{path}: cannot be written ({reason(error)})") from error
    return paths


def command(source: str, names: Sequence[str], out: Path | None, device_name: str) -> None:
    """`traflow-pipeline reference`: build one for each of the feature spaces `names`, and print what it is."""
    device = pick_device(device_name)
    for path in build(source, [spaces.load_space(name, device) for name in names], out):
        arrays = _read(path)
        num_images, space = int(arrays["num_images"]), str(arrays["space"])
        say(f"{path}: {num_images} images in {space}; sha256 of the images {arrays['images_sha256']}")


def _check_distinct(spaces: Sequence[FeatureSpace]) -> None:
    names = [space.name for space in spaces]
    if len(set(names)) != len(names):
        raise BadInput(f"features: wanted spaces of different names; they are {', '.join(names)}")


def open_images(source: str) -> Images:
    """The images of `source`: an image set, or the samples in a data set of ours.

    Raises:
        BadInput: it holds none, or too few.
        WorkFailed: the data set cannot be read.
    """
    is_data_set = "://" in source or (Path(source) / PLAN).is_file()
    images = _of_data_set(source) if is_data_set else _of_image_set(source)
    if images.num_images < distances.MIN_SAMPLES:
        raise BadInput(f"{source}: wanted at least {distances.MIN_SAMPLES} images; it holds {images.num_images}")
    return images


def _of_image_set(source: str) -> Images:
    found = load_images(source)
    num_images = len(found)
    batches = (found.images[start : start + BATCH_SIZE] for start in range(0, num_images, BATCH_SIZE))
    digest = hashlib.sha256(f"{found.images.shape}".encode())
    digest.update(found.images.data)
    return Images(found.name, num_images, found.shape, digest.hexdigest(), batches)


def _of_data_set(source: str) -> Images:
    manifest = read_manifest(open_store(source))
    plan = manifest.plan
    title = f"samples of teacher {plan.teacher}"
    # Hashing the samples would read everything once more, and the data set's digest says as much.
    return Images(title, manifest.num_records, plan.shape, manifest.sha256, _samples(manifest))


def _samples(manifest: Manifest) -> Iterator[NDArray[np.uint8]]:
    """The samples of a data set as bytes, about `BATCH_SIZE` at a time."""
    reader, num_blocks = BlockReader(manifest), manifest.blocks.num_rows
    pending: list[NDArray[np.uint8]] = []
    try:
        for block in range(num_blocks):
            reader.prefetch(range(block, min(block + BLOCKS_AHEAD, num_blocks)))
            pending.append(to_bytes(reader.read(block).sample.astype(np.float32), manifest.plan.data_range))
            if sum(map(len, pending)) >= BATCH_SIZE or block == num_blocks - 1:
                yield np.concatenate(pending)
                pending = []
    finally:
        reader.close()


class _Accumulated:
    """Moments of all features, and the features that are kept."""

    def __init__(self, num_images: int) -> None:
        self.moments = RunningMoments()
        self._rows, self._kept = distances.spread(num_images), list[Features]()

    def add(self, batch: Features) -> None:
        first = self.moments.count
        rows = self._rows[(self._rows >= first) & (self._rows < first + len(batch))] - first
        self._kept.append(batch[rows])
        self.moments.add(batch)

    def measured(self, space: str) -> ReferenceStats:
        return ReferenceStats(space, self.moments.result(), np.concatenate(self._kept), self.moments.count)


def _measure(source: str, images: Images, spaces: Sequence[FeatureSpace]) -> dict[str, ReferenceStats]:
    """`images` in `spaces`: from the cache, or anew and then, if it took long, for the cache."""
    kept = {space.name: found for space in spaces if (found := _read_cached(images, space)) is not None}
    missing = [space for space in spaces if space.name not in kept]
    started = time.monotonic()
    accumulated = _extract(source, images, missing) if missing else {}
    if time.monotonic() - started >= WORTH_SECONDS:
        for space in missing:
            with suppress(OSError):  # a cache that cannot be written is no reason to stop
                _write(_cached(images, space), images, space, accumulated[space.name])
    fresh = {name: found.measured(name) for name, found in accumulated.items()}
    return {space.name: (kept | fresh)[space.name] for space in spaces}


def _extract(source: str, images: Images, spaces: Sequence[FeatureSpace]) -> dict[str, _Accumulated]:
    for space in spaces:
        space.check_shape(images.shape, source)
    found = {space.name: _Accumulated(images.num_images) for space in spaces}
    with bar("reference", images.num_images * len(spaces)) as advance:
        for batch in images.batches:
            for space in spaces:
                found[space.name].add(space.extract(batch).features)
                advance(len(batch), space.name)
    return found


def _described(source: str, images: Images) -> results.Reference:
    return results.Reference(
        source=source,
        title=images.title,
        num_images=images.num_images,
        shape=images.shape,
        sha256=images.sha256,
    )


def _notes(shape: tuple[int, ...] | None, spaces: Sequence[FeatureSpace]) -> tuple[str, ...]:
    repeated = [space.name for space in spaces if space.shape is None]
    if shape is None or shape[0] != 1 or not repeated:
        return ()
    return (f"Grey images are repeated to three channels for {', '.join(repeated)}.",)


def _identity(images: Images, space: FeatureSpace) -> dict[str, str]:
    """What decides the figures."""
    return {
        "images_sha256": images.sha256,
        "space": space.name,
        "weights_sha256": space.sha256,
        "resizer": space.resizer,
    }


def _cached(images: Images, space: FeatureSpace) -> Path:
    name = hashlib.sha256("\n".join(_identity(images, space).values()).encode()).hexdigest()
    return cache_folder("references") / f"{name}.npz"


def _read_cached(images: Images, space: FeatureSpace) -> ReferenceStats | None:
    """None where there is none, or it is not what its name says."""
    path = _cached(images, space)
    if not path.is_file():
        return None
    try:
        arrays = _read(path)
        is_same = all(str(arrays[name]) == value for name, value in _identity(images, space).items())
        return _measured(path, arrays) if is_same else None
    except (BadInput, KeyError):
        return None


def _write(path: Path, images: Images, space: FeatureSpace, accumulated: _Accumulated) -> None:
    measured = accumulated.measured(space.name)
    arrays: Any = {
        "mu": measured.moments.mean,
        "sigma": measured.moments.covariance,
        "features": measured.features,
        "num_images": images.num_images,
        "shape": images.shape,
        "title": images.title,
    }
    buffer = io.BytesIO()
    np.savez(buffer, **(arrays | _identity(images, space)))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def _open_built(source: str, spaces: Sequence[FeatureSpace]) -> OpenedReference:
    arrays = _read(Path(source))
    try:
        name, title = str(arrays["space"]), str(arrays["title"])
        shape, digest = tuple(map(int, arrays["shape"])), str(arrays["images_sha256"])
        made_with = {"weights": str(arrays["weights_sha256"]), "resizer": str(arrays["resizer"])}
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{source}: wanted a reference; {one_line(error)}: build it again") from error
    measured = _measured(Path(source), arrays)
    own = [space for space in spaces if space.name == name]
    for space in own:
        for part, value in {"weights": space.sha256, "resizer": space.resizer}.items():
            if made_with[part] != value:
                raise BadInput(
                    f"{source}: wanted a reference in {name} of {part} {value}; it was built with {made_with[part]}: "
                    "build it again"
                )
        _check_length(source, measured.moments, space, shape)
    reference = results.Reference(
        source=source, title=title, num_images=measured.num_images, shape=shape, sha256=digest
    )
    found = {space.name: measured for space in own}
    return OpenedReference(
        reference, found, _missing(source, found, spaces, f"was built for {name}"), _notes(shape, own)
    )


def _open_statistics(source: str, spaces: Sequence[FeatureSpace], has_images: bool) -> OpenedReference:
    """EDM's statistics, or ADM's, which may have images beside them; those are fewer than the statistics are of."""
    path = Path(source)
    given = _moments(source, _read(path))
    images = open_images(source) if has_images else None
    shape = None if images is None else images.shape
    measured = {} if images is None else _measure(source, images, spaces)
    for space in spaces:
        if space.name == STATISTICS_SPACE:
            _check_length(source, given, space, shape)
            found = measured.get(space.name)
            measured[space.name] = ReferenceStats(space.name, given, None if found is None else found.features, None)
    notes = _notes(shape, spaces)
    if images is not None and STATISTICS_SPACE in measured:
        notes += (
            f"The Fréchet distance in {STATISTICS_SPACE} is to the statistics in {path.name}; all else is to the "
            f"{images.num_images} images in it.",
        )
    reference = results.Reference(
        source=source,
        title=f"statistics {path.stem}",
        num_images=None if images is None else images.num_images,
        shape=shape,
        sha256=_digest([path]),
    )
    why = f"holds statistics alone, which are of {STATISTICS_SPACE}"
    return OpenedReference(reference, measured, _missing(source, measured, spaces, why), notes)


def _open_clean_fid(source: str, spaces: Sequence[FeatureSpace]) -> OpenedReference:
    """What clean-fid publishes of a data set: statistics, and of some the features too."""
    parts = source.removeprefix(CLEAN_FID).split("/")
    if len(parts) != 3 or not all(parts):
        raise BadInput(f"{source}: wanted {CLEAN_FID}NAME/SPLIT/RES, such as {CLEAN_FID}cifar10/train/32")
    name, split, resolution = parts
    shape = (3, int(resolution), int(resolution)) if resolution.isdecimal() else None
    measured, paths = {}, []
    own = [space for space in spaces if space.name in CLEAN_FID_MODES]
    for space in own:
        stem = f"{name}_{CLEAN_FID_MODES[space.name]}_{split}_{resolution}".lower()
        path = _clean_fid_file(f"{stem}.npz")
        given = _moments(str(path), _read(path))
        _check_length(str(path), given, space, shape)
        kept, more = _clean_fid_features(f"{stem}_kid.npz")
        measured[space.name] = ReferenceStats(space.name, given, kept, None)
        paths += [path, *more]
    why = "is of Inception's features"
    not_computed = _missing(source, measured, spaces, why)
    reference = results.Reference(
        source=source,
        title=f"clean-fid's {name}, {split}, {resolution}",
        num_images=None,
        shape=shape,
        sha256=_digest(paths),
    )
    return OpenedReference(reference, measured, not_computed)


def _clean_fid_file(name: str) -> Path:
    """clean-fid's own copy, or ours, downloaded if there is none."""
    import cleanfid

    theirs = Path(cleanfid.__file__).parent / "stats" / name
    ours = weights.folder() / "clean-fid" / name
    return theirs if theirs.is_file() else weights.obtain(f"{CLEAN_FID_STATISTICS}/{name}", ours)


def _clean_fid_features(name: str) -> tuple[Features | None, list[Path]]:
    """The features in that file, and the file; none where clean-fid publishes none."""
    try:
        path = _clean_fid_file(name)
    except Unavailable:
        return None, []
    try:
        found = np.asarray(_read(path)["feats"], np.float32)
    except (KeyError, ValueError) as error:
        raise BadInput(f"{path}: wanted clean-fid's features ({one_line(error)}): remove it, and run again") from error
    return found[distances.spread(len(found))], [path]


def _missing(
    source: str, measured: Mapping[str, ReferenceStats], spaces: Sequence[FeatureSpace], why: str
) -> tuple[NotComputed, ...]:
    """The spaces that a reference says nothing in.

    Raises:
        BadInput: it says nothing in any.
    """
    missing = [space.name for space in spaces if space.name not in measured]
    if not missing:
        return ()
    if not measured:
        raise BadInput(f"{source} {why}; wanted a reference in {', '.join(missing)}: choose other features, or images")
    return (NotComputed(metrics=distances.keys(missing), reason=f"{source} {why}: give images"),)


def _read_keys(path: Path) -> set[str]:
    """The arrays in an .npz; none where `path` is something else."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return set()
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
    except UNREADABLE:
        return set()


def _read(path: Path) -> Arrays:
    """All arrays of an .npz but for images.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays if name not in NPZ_KEYS}
    except UNREADABLE as error:
        raise BadInput(
            f"{path}: wanted an .npz of statistics; {one_line(error)}: download or build it again"
        ) from error


def _measured(path: Path, arrays: Arrays) -> ReferenceStats:
    """What a file of `build` holds."""
    given = _moments(str(path), arrays)
    kept = arrays.get("features")
    if kept is None or kept.dtype != np.float32 or kept.shape[1:] != given.mean.shape or "num_images" not in arrays:
        raise BadInput(f"{path}: wanted features float32 [N, {len(given.mean)}] and their number: build it again")
    return ReferenceStats(str(arrays["space"]), given, kept, int(arrays["num_images"]))


def _moments(source: str, arrays: Arrays) -> Moments:
    mean, covariance = arrays.get("mu"), arrays.get("sigma")
    if mean is None or covariance is None or mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        shapes = [None if array is None else list(array.shape) for array in (mean, covariance)]
        raise BadInput(f"{source}: wanted statistics 'mu' [D] and 'sigma' [D, D]; they are {shapes[0]} and {shapes[1]}")
    if mean.dtype.kind != "f" or covariance.dtype.kind != "f" or not np.isfinite([mean.sum(), covariance.sum()]).all():
        raise BadInput(f"{source}: wanted finite floating-point statistics; download or build them again")
    return Moments(mean.astype(np.float64), covariance.astype(np.float64))


def _check_length(source: str, given: Moments, space: FeatureSpace, shape: tuple[int, ...] | None) -> None:
    """Raises `BadInput` if the statistics are of another number of features than the space has for a black picture."""
    black = np.zeros((1, *(space.shape or shape or (3, 32, 32))), np.uint8)
    num_features = space.extract(black).features.shape[1]
    if len(given.mean) != num_features:
        raise BadInput(
            f"{source}: wanted statistics of the {num_features} features of {space.name}; they are of {len(given.mean)}"
        )


def _digest(paths: Sequence[Path]) -> str:
    """The sha256 of a file; of several, that of theirs."""
    digests = [file_sha256(path) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
