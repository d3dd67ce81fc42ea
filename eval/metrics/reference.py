"""References to compare samples with: image sets, our data sets, published statistics, and files that `build` wrote.

Statistics of images that took long to compute are kept in the user's cache, keyed by what decides the figures: the
images, the feature space, its weights and its resizer.
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
import torch
from numpy.typing import NDArray

from eval import results
from eval.features import spaces, weights
from eval.features.spaces import Features, FeatureSpace
from eval.features.weights import Unavailable
from eval.metrics import distances
from eval.metrics.distances import Moments, ReferenceSize, ReferenceStats, RunningMoments
from eval.results import NotComputed
from pipeline.common.device import pick_device
from pipeline.common.errors import BadInput, one_line, reason
from pipeline.common.image_grid import Images, to_bytes
from pipeline.common.progress import bar, say
from pipeline.dataset.manifest import PLAN, Manifest, read_manifest
from pipeline.dataset.reader import BlockReader
from pipeline.storage.cache import cache_folder
from pipeline.storage.hashing import file_sha256
from pipeline.storage.store import open_store, write_atomic
from pipeline.teachers.loading import find_decoder
from pipeline.teachers.teacher import Decode
from trainer.data.array_files import NPZ_KEYS
from trainer.data.image_set import to_float
from trainer.data.images import load_images
from trainer.data.npz import open_npz
from trainer.data.pictures import UNREADABLE

Arrays = Mapping[str, NDArray[Any]]

BATCH_SIZE = 1024  # images per batch
MIN_CACHE_SECONDS = 10.0  # a reference that took at least as long to compute is cached
BLOCKS_AHEAD = 8  # blocks of a data set to prefetch

# EDM's and ADM's statistics are of Inception's features after TensorFlow's resizing.
STATISTICS_SPACE = "inception-tf"
TEACHER = "teacher"  # the source of the teacher's own samples
CLEAN_FID = "cleanfid:"
CLEAN_FID_STATISTICS = "https://www.cs.cmu.edu/~clean-fid/stats"
CLEAN_FID_MODES = {"inception": "clean", "inception-tf": "legacy_tensorflow", "inception-torch": "legacy_pytorch"}


@dataclass(frozen=True)
class OpenedReference:
    """A reference and its statistics, keyed by feature space."""

    reference: results.Reference
    stats: dict[str, ReferenceStats]
    not_computed: tuple[NotComputed, ...] = ()  # metrics in feature spaces without statistics
    notes: tuple[str, ...] = ()  # for the report
    images: Images | None = None  # uint8 [N, C, H, W], of an image set
    awaited: tuple[ReferenceSize, ...] = ()  # statistics of samples that the evaluation draws

    @property
    def sizes(self) -> dict[str, ReferenceSize]:
        """What is known of its statistics, keyed by feature space."""
        return {size.space: size for size in (*(stats.size for stats in self.stats.values()), *self.awaited)}


@dataclass(frozen=True)
class ImageBatches:
    """Images uint8 [B, C, H, W] or arrays float32 [B, *shape] in batches, which can be read once.

    The black and the white of images are the ends of `data_range`; None of arrays that are no images.
    """

    title: str
    num_images: int
    shape: tuple[int, ...]
    sha256: str
    data_range: tuple[float, float] | None
    batches: Iterator[NDArray[Any]]
    images: Images | None = None  # all of them, uint8, where they lie in memory or in a mapped file


def open_reference(source: str, spaces: Sequence[FeatureSpace]) -> OpenedReference:
    """The reference `source` and its statistics in `spaces`.

    `source` is whatever `load_images` takes; the folder or URL of a data set, for its teacher's samples; an .npz of
    EDM's or ADM's statistics, with or without images; `cleanfid:NAME/SPLIT/RES`; or a file that `build` wrote.

    Raises:
        BadInput: it is none of these, or has statistics in none of `spaces`.
        Unavailable: clean-fid's statistics cannot be downloaded.
        WorkFailed: a data set cannot be read.
    """
    _check_distinct(spaces)
    if source.startswith(CLEAN_FID):
        return _open_clean_fid(source, spaces)
    keys = _read_keys(Path(source))
    if {"mu", "sigma", "space"} <= keys:
        return _open_built(source, spaces)
    if {"mu", "sigma"} <= keys:
        return _open_statistics(source, spaces, has_images=any(key in keys for key in NPZ_KEYS))
    images = open_images(source)
    stats = _compute_stats(source, images, spaces)
    return OpenedReference(_describe(source, images), stats, notes=_notes(images.shape, spaces), images=images.images)


def await_teacher(
    identity: str, num_samples: int, shape: tuple[int, ...], spaces: Sequence[FeatureSpace]
) -> OpenedReference:
    """The `num_samples` samples of `shape` that the teacher's own solver is to draw; `identity` says which."""
    _check_distinct(spaces)
    black = np.zeros((1, *shape), np.uint8)
    num_kept = len(distances.kept_rows(num_samples))
    reference = results.Reference(
        source=TEACHER,
        title="the teacher's own samples from the same noise",
        num_images=num_samples,
        shape=shape,
        sha256=hashlib.sha256(identity.encode()).hexdigest(),
    )
    awaited = [
        ReferenceSize(space.name, space.extract(black).features.shape[1], num_kept, num_samples, is_teacher=True)
        for space in spaces
    ]
    return OpenedReference(reference, {}, notes=_notes(shape, spaces), awaited=tuple(awaited))


def check_reference(source: str) -> None:
    """Raises `BadInput` unless `source` can be a reference; what exists may be large and is not read whole."""
    if source == TEACHER or source.startswith(CLEAN_FID) or "://" in source:
        return
    if Path(source).exists():
        _read_keys(Path(source))
    else:
        open_images(source)


def check_shape(reference: results.Reference, shape: tuple[int, ...]) -> None:
    """Raises `BadInput` if the reference's images are not of `shape` [C, H, W], that of the samples."""
    if reference.shape is None or reference.shape == shape:
        return
    is_deeper = len(shape) == 3 and reference.shape[1:] == shape[1:]
    difference = (
        "another number of channels" if is_deeper else "another resolution" if len(shape) == 3 else "another shape"
    )
    raise BadInput(
        f"{reference.source}: wanted a reference of {list(shape)}, as the samples are; "
        f"its samples have {difference}, {list(reference.shape)}"
    )


def build(source: str, spaces: Sequence[FeatureSpace], out: Path | None = None) -> list[Path]:
    """Compute the statistics of the images of `source`, and write a file for each of `spaces`.

    With one space, the file may be `out`; else the files go into the user's cache. Returns their paths.

    Raises:
        BadInput: `source` holds no images, there is an `out` but not one space, or a file cannot be written.
        WorkFailed: a data set cannot be read.
    """
    if out is not None and len(spaces) != 1:
        raise BadInput(f"{out}: wanted one feature space for one file; there are {len(spaces)}")
    _check_distinct(spaces)
    images = open_images(source)
    paths = [out or _cache_path(images, space) for space in spaces]
    stats = _extract(source, images, spaces)
    for space, path in zip(spaces, paths, strict=True):
        try:
            _write(path, images, space, stats[space.name])
        except OSError as error:
            raise BadInput(f"{path}: cannot be written ({reason(error)})") from error
    return paths


def command(source: str, names: Sequence[str], out: Path | None, device_name: str) -> None:
    """`traflow-pipeline reference`: build a reference for each feature space of `names`, and print its path."""
    device = pick_device(device_name)
    for path in build(source, [spaces.load_space(name, device) for name in names], out):
        arrays = _read(path)
        num_images, space = int(arrays["num_images"]), str(arrays["space"])
        say(f"{path}: {num_images} images in {space}; sha256 of the images {arrays['images_sha256']}")


def _check_distinct(spaces: Sequence[FeatureSpace]) -> None:
    names = [space.name for space in spaces]
    if len(set(names)) != len(names):
        raise BadInput(f"features: wanted spaces of different names; they are {', '.join(names)}")


def open_images(source: str) -> ImageBatches:
    """The images of `source`: an image set, or the samples in one of our data sets.

    Raises:
        BadInput: it holds no images, or fewer than `distances.MIN_SAMPLES`.
        WorkFailed: the data set cannot be read.
    """
    is_data_set = "://" in source or (Path(source) / PLAN).is_file()
    images = _open_data_set(source) if is_data_set else _open_image_set(source)
    if images.num_images < distances.MIN_SAMPLES:
        raise BadInput(f"{source}: wanted at least {distances.MIN_SAMPLES} images; it holds {images.num_images}")
    return images


def _open_image_set(source: str) -> ImageBatches:
    image_set = load_images(source)
    for note in image_set.notes:
        say(f"note: {source}: {note}")
    num_images = len(image_set)
    batches = (image_set.images[start : start + BATCH_SIZE] for start in range(0, num_images, BATCH_SIZE))
    data_range = image_set.data_range if image_set.images.dtype == np.uint8 else None
    digest = hashlib.sha256(f"{image_set.images.shape}".encode())
    digest.update(image_set.images.data)
    images = image_set.images if image_set.images.dtype == np.uint8 else None
    return ImageBatches(image_set.name, num_images, image_set.shape, digest.hexdigest(), data_range, batches, images)


def _open_data_set(source: str) -> ImageBatches:
    manifest = read_manifest(open_store(source))
    plan = manifest.plan
    title = f"samples of teacher {plan.teacher}"
    # The data set's digest identifies its samples; hashing those would read everything twice.
    shape, decode = plan.shape, None
    if plan.latents:
        decode = find_decoder(manifest.dataset.teacher_source)
        if decode is None:
            raise BadInput(
                f"{manifest.store.location}: its samples are latents, whose decoder is not here: give images"
            )
        shape = tuple(decode(torch.zeros(1, *plan.shape)).shape[1:])
    samples = _samples(manifest, decode)
    return ImageBatches(title, manifest.num_records, shape, manifest.sha256, plan.data_range, samples)


def _samples(manifest: Manifest, decode: Decode | None = None) -> Iterator[NDArray[np.float32]]:
    """The samples of a data set, `decode`d if they are latents, float32 [B, *shape], B about `BATCH_SIZE`."""
    reader, num_blocks = BlockReader(manifest), manifest.blocks.num_rows
    pending: list[NDArray[np.float32]] = []
    try:
        for block in range(num_blocks):
            reader.prefetch(range(block, min(block + BLOCKS_AHEAD, num_blocks)))
            samples = reader.read(block).sample.astype(np.float32)
            pending.append(samples if decode is None else decode(torch.from_numpy(samples)).numpy())
            if sum(map(len, pending)) >= BATCH_SIZE or block == num_blocks - 1:
                yield np.concatenate(pending)
                pending = []
    finally:
        reader.close()


class _RunningStats:
    """The statistics of features that come in batches [B, D], in the order of their images."""

    def __init__(self, num_images: int) -> None:
        self.moments = RunningMoments()
        self._rows, self._kept = distances.kept_rows(num_images), list[Features]()

    def add(self, batch: Features) -> None:
        start = self.moments.count
        rows = self._rows[(self._rows >= start) & (self._rows < start + len(batch))] - start
        self._kept.append(batch[rows])
        self.moments.add(batch)

    def result(self, space: str) -> ReferenceStats:
        return ReferenceStats(space, self.moments.result(), np.concatenate(self._kept), self.moments.count)


def _compute_stats(source: str, images: ImageBatches, spaces: Sequence[FeatureSpace]) -> dict[str, ReferenceStats]:
    """The statistics of `images` in `spaces`: from the cache, else computed, and cached if that took long."""
    cached = {space.name: stats for space in spaces if (stats := _read_cached(images, space)) is not None}
    missing = [space for space in spaces if space.name not in cached]
    started = time.monotonic()
    computed = _extract(source, images, missing) if missing else {}
    if time.monotonic() - started >= MIN_CACHE_SECONDS:
        for space in missing:
            with suppress(OSError):  # the evaluation works without a cache
                _write(_cache_path(images, space), images, space, computed[space.name])
    return {space.name: (cached | computed)[space.name] for space in spaces}


def _extract(source: str, images: ImageBatches, spaces: Sequence[FeatureSpace]) -> dict[str, ReferenceStats]:
    for space in spaces:
        space.check_shape(images.shape, source)
        if space.of == "images" and images.data_range is None:
            raise BadInput(
                f"{source}: wanted images for {space.title}; it holds floating-point arrays: take --features values"
            )
    running = {space.name: _RunningStats(images.num_images) for space in spaces}
    with bar("reference", images.num_images * len(spaces)) as advance:
        for batch in images.batches:
            for space in spaces:
                running[space.name].add(space.extract(_as_taken(batch, images.data_range, space)).features)
                advance(len(batch), space.name)
    return {name: stats.result(name) for name, stats in running.items()}


def _as_taken(batch: NDArray[Any], data_range: tuple[float, float] | None, space: FeatureSpace) -> NDArray[Any]:
    """`batch` as `space` takes it: as bytes, or as values, which of images are in [-1, 1]."""
    if space.of == "values":
        return to_float(batch)
    if batch.dtype == np.uint8:
        return batch
    assert data_range is not None  # `_extract` has refused such arrays
    return to_bytes(batch, data_range)


def _describe(source: str, images: ImageBatches) -> results.Reference:
    return results.Reference(
        source=source,
        title=images.title,
        num_images=images.num_images,
        shape=images.shape,
        sha256=images.sha256,
    )


def _notes(shape: tuple[int, ...] | None, spaces: Sequence[FeatureSpace]) -> tuple[str, ...]:
    repeated = [space.name for space in spaces if space.of == "images" and space.shape is None]
    if shape is None or shape[0] != 1 or not repeated:
        return ()
    return (f"Grey images are repeated to three channels for {', '.join(repeated)}.",)


def _identity(images: ImageBatches, space: FeatureSpace) -> dict[str, str]:
    """What decides the statistics."""
    return {
        "images_sha256": images.sha256,
        "space": space.name,
        "weights_sha256": space.sha256,
        "resizer": space.resizer,
    }


def _cache_path(images: ImageBatches, space: FeatureSpace) -> Path:
    name = hashlib.sha256("\n".join(_identity(images, space).values()).encode()).hexdigest()
    return cache_folder("references") / f"{name}.npz"


def _read_cached(images: ImageBatches, space: FeatureSpace) -> ReferenceStats | None:
    """The cached statistics; None if there are none, or the file does not hold what its name says."""
    path = _cache_path(images, space)
    if not path.is_file():
        return None
    try:
        arrays = _read(path)
        is_same = all(str(arrays[name]) == value for name, value in _identity(images, space).items())
        return _parse_stats(path, arrays) if is_same else None
    except (BadInput, KeyError):
        return None


def _write(path: Path, images: ImageBatches, space: FeatureSpace, stats: ReferenceStats) -> None:
    arrays: Any = {
        "mu": stats.moments.mean,
        "sigma": stats.moments.covariance,
        "features": stats.features,
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
        built_with = {"weights": str(arrays["weights_sha256"]), "resizer": str(arrays["resizer"])}
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{source}: wanted a reference; {one_line(error)}: build it again") from error
    stats = _parse_stats(Path(source), arrays)
    matching = [space for space in spaces if space.name == name]
    for space in matching:
        for part, value in {"weights": space.sha256, "resizer": space.resizer}.items():
            if built_with[part] != value:
                raise BadInput(
                    f"{source}: wanted a reference in {name} with {part} {value}; it was built with "
                    f"{built_with[part]}: build it again"
                )
        _check_length(source, stats.moments, space, shape)
    reference = results.Reference(source=source, title=title, num_images=stats.num_images, shape=shape, sha256=digest)
    by_space = {space.name: stats for space in matching}
    not_computed = _list_not_computed(source, by_space, spaces, f"was built for {name}")
    return OpenedReference(reference, by_space, not_computed, _notes(shape, matching))


def _open_statistics(source: str, spaces: Sequence[FeatureSpace], has_images: bool) -> OpenedReference:
    """EDM's or ADM's statistics. ADM's files also hold images, fewer than the statistics are over."""
    path = Path(source)
    moments = _parse_moments(source, _read(path))
    images = open_images(source) if has_images else None
    shape = None if images is None else images.shape
    stats = {} if images is None else _compute_stats(source, images, spaces)
    for space in spaces:
        if space.name == STATISTICS_SPACE:
            _check_length(source, moments, space, shape)
            features = stats[space.name].features if space.name in stats else None
            stats[space.name] = ReferenceStats(space.name, moments, features, None)
    notes = _notes(shape, spaces)
    if images is not None and STATISTICS_SPACE in stats:
        notes += (
            f"The Fréchet distance in {STATISTICS_SPACE} is to the statistics in {path.name}; all other metrics are to "
            f"the {images.num_images} images in it.",
        )
    reference = results.Reference(
        source=source,
        title=f"statistics {path.stem}",
        num_images=None if images is None else images.num_images,
        shape=shape,
        sha256=_digest([path]),
    )
    reason = f"holds only statistics, which are of {STATISTICS_SPACE}"
    not_computed = _list_not_computed(source, stats, spaces, reason)
    return OpenedReference(reference, stats, not_computed, notes, None if images is None else images.images)


def _open_clean_fid(source: str, spaces: Sequence[FeatureSpace]) -> OpenedReference:
    """What clean-fid publishes for a data set: moments, and for some data sets the features too."""
    parts = source.removeprefix(CLEAN_FID).split("/")
    if len(parts) != 3 or not all(parts):
        raise BadInput(f"{source}: wanted {CLEAN_FID}NAME/SPLIT/RES, such as {CLEAN_FID}cifar10/train/32")
    name, split, resolution = parts
    shape = (3, int(resolution), int(resolution)) if resolution.isdecimal() else None
    stats, paths = {}, []
    for space in spaces:
        if space.name not in CLEAN_FID_MODES:
            continue
        stem = f"{name}_{CLEAN_FID_MODES[space.name]}_{split}_{resolution}".lower()
        path = _clean_fid_file(f"{stem}.npz")
        moments = _parse_moments(str(path), _read(path))
        _check_length(str(path), moments, space, shape)
        features, more_paths = _clean_fid_features(f"{stem}_kid.npz")
        stats[space.name] = ReferenceStats(space.name, moments, features, None)
        paths += [path, *more_paths]
    not_computed = _list_not_computed(source, stats, spaces, "is of Inception's features")
    reference = results.Reference(
        source=source,
        title=f"clean-fid's {name}, {split}, {resolution}",
        num_images=None,
        shape=shape,
        sha256=_digest(paths),
    )
    return OpenedReference(reference, stats, not_computed)


def _clean_fid_file(name: str) -> Path:
    """The path of the file in clean-fid's package, else in our folder of weights, downloaded if it is missing."""
    import cleanfid

    theirs = Path(cleanfid.__file__).parent / "stats" / name
    ours = weights.folder() / "clean-fid" / name
    return theirs if theirs.is_file() else weights.obtain(f"{CLEAN_FID_STATISTICS}/{name}", ours)


def _clean_fid_features(name: str) -> tuple[Features | None, list[Path]]:
    """The kept features of the file `name`, and its path; none if clean-fid does not publish it."""
    try:
        path = _clean_fid_file(name)
    except Unavailable:
        return None, []
    try:
        features = np.asarray(_read(path)["feats"], np.float32)
    except (KeyError, ValueError) as error:
        raise BadInput(f"{path}: wanted clean-fid's features ({one_line(error)}): remove it, and run again") from error
    return features[distances.kept_rows(len(features))], [path]


def _list_not_computed(
    source: str, stats: Mapping[str, ReferenceStats], spaces: Sequence[FeatureSpace], reason: str
) -> tuple[NotComputed, ...]:
    """The metrics of the spaces without statistics.

    Raises:
        BadInput: no space has any.
    """
    missing = [space.name for space in spaces if space.name not in stats]
    if not missing:
        return ()
    if not stats:
        raise BadInput(
            f"{source} {reason}; wanted a reference in {', '.join(missing)}: choose other features, or give images"
        )
    return (NotComputed(metrics=distances.metric_keys(missing), reason=f"{source} {reason}: give images"),)


def _read_keys(path: Path) -> set[str]:
    """The names of the arrays in an .npz; none if `path` is something else."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return set()
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
    except UNREADABLE:
        return set()


def _read(path: Path) -> Arrays:
    """All arrays of an .npz except images.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        with open_npz(path) as arrays:
            return {name: arrays[name] for name in arrays.names if name not in NPZ_KEYS}
    except UNREADABLE as error:
        raise BadInput(
            f"{path}: wanted an .npz of statistics; {one_line(error)}: download or build it again"
        ) from error


def _parse_stats(path: Path, arrays: Arrays) -> ReferenceStats:
    """The statistics in the arrays of a file that `build` wrote."""
    moments = _parse_moments(str(path), arrays)
    features, shape = arrays.get("features"), moments.mean.shape
    if features is None or features.dtype != np.float32 or features.shape[1:] != shape or "num_images" not in arrays:
        raise BadInput(f"{path}: wanted features float32 [N, {shape[0]}] and their number: build it again")
    return ReferenceStats(str(arrays["space"]), moments, features, int(arrays["num_images"]))


def _parse_moments(source: str, arrays: Arrays) -> Moments:
    mean, covariance = arrays.get("mu"), arrays.get("sigma")
    if mean is None or covariance is None or mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        shapes = [None if array is None else list(array.shape) for array in (mean, covariance)]
        raise BadInput(f"{source}: wanted statistics 'mu' [D] and 'sigma' [D, D]; they are {shapes[0]} and {shapes[1]}")
    if mean.dtype.kind != "f" or covariance.dtype.kind != "f" or not np.isfinite([mean.sum(), covariance.sum()]).all():
        raise BadInput(f"{source}: wanted finite floating-point statistics; download or build them again")
    return Moments(mean.astype(np.float64), covariance.astype(np.float64))


def _check_length(source: str, moments: Moments, space: FeatureSpace, shape: tuple[int, ...] | None) -> None:
    """Raises `BadInput` unless the moments have as many features as the space extracts from a black image."""
    if space.of == "values" and shape is None:
        return
    black = np.zeros((1, *(space.shape or shape or (3, 32, 32))), np.uint8)
    num_features, length = space.extract(black).features.shape[1], len(moments.mean)
    if length != num_features:
        raise BadInput(
            f"{source}: wanted statistics of the {num_features} features of {space.name}; they are of {length}"
        )


def _digest(paths: Sequence[Path]) -> str:
    """The sha256 of a file; of several files, the sha256 of their digests."""
    digests = [file_sha256(path) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
