"""Labelled image sets: Omniglot, mini-ImageNet, Glyphs and folders of one's own.

Each is decoded once into a checked cache.

All of them are under one data root, METANB_DATA or else the user's cache folder:

    omniglot-py/images_background/<Alphabet>/<characterNN>/*.png    as torchvision extracts it,
    omniglot-py/images_evaluation/<Alphabet>/<characterNN>/*.png    for both of its halves
    mini-imagenet/images/*                                    Ravi and Larochelle's layout:
    mini-imagenet/train.csv, val.csv, test.csv                columns filename,label
    <name>/{train,valid,test}/<class>/*                       a data set of one's own
    cache/                                                    what was decoded or rendered
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs

from metanb.data import glyphs, image_folders, mini_imagenet, omniglot
from metanb.data.cache import Content, Origin, digest_of, pad_classes, read_or_build
from metanb.data.cache import DataError as DataError  # callers know it as image_sets.DataError
from metanb.labels import OWN_DATASET

SPLITS = ("train", "valid", "test")
# What a split is made from, by data set: a function of the data root, the split and a seed.
ORIGINS: dict[str, Callable[[Path, str, int], Origin]] = {
    "glyphs": glyphs.origin,
    "omniglot": omniglot.origin,
    "mini-imagenet": mini_imagenet.origin,
}


@dataclass(frozen=True)
class ImageSet:
    """The images of one split of a data set, read-only."""

    name: str
    split: str  #: "train", "valid" or "test": meta-training, meta-validation, meta-test classes
    #: uint8 [classes, per_class, C, H, W], perhaps a np.memmap; Omniglot and glyphs: ink 255 on 0.
    #: Behind the images of a class that has fewer are zeros.
    images: np.ndarray
    classes: tuple[str, ...]  #: name of each class, all different
    digest: str  #: first 16 hex digits of the SHA-256 of shape, names, unequal counts and pixels
    counts: tuple[int, ...] = ()  #: images of each class; (): as many as there is room for

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 5:
            shape = f"{self.images.dtype} {list(self.images.shape)}"
            raise DataError(
                f"{self.name} {self.split}: images are {shape}; "
                "give uint8 [classes, per_class, C, H, W]"
            )
        if not len(self.images) == len(self.classes) == len(set(self.classes)):
            names = f"{len(set(self.classes))} different names"
            raise DataError(
                f"{self.name} {self.split}: {names} for {len(self.images)} classes; "
                "name each class once"
            )
        per_class = self.images.shape[1]
        if not self.counts:
            object.__setattr__(self, "counts", (per_class,) * len(self.classes))
        if len(self.counts) != len(self.classes) or not 0 < min(self.counts) <= per_class:
            raise DataError(
                f"{self.name} {self.split}: counts are {self.counts}; give 1 to {per_class} images "
                f"for each of {len(self.classes)} classes"
            )

    @classmethod
    def from_folder(cls, folder: Path | str, split: str) -> "ImageSet":
        """Read one split of a folder of images, laid out as `metanb.data.image_folders` says.

        To train on it by name, put the folder under the data root: `--dataset NAME`.

        Args:
            folder: of the data set.
            split: "train", "valid" or "test".

        Raises:
            DataError: what is wrong with the folder, and the remedy.
        """
        _check_split(split)
        source = image_folders.folder_source(Path(folder), split)
        shape, contents = pad_classes(source)
        images = np.frombuffer(b"".join(contents), np.uint8).reshape(shape)  # read-only
        names, counts = tuple(source.names), tuple(source.counts)
        digest = digest_of(names, counts, images)
        return cls(Path(folder).name, split, images, names, digest, counts)


def data_root() -> Path:
    """METANB_DATA if set, else `metanb/data` in the user's cache folder."""
    if folder := os.environ.get("METANB_DATA"):
        return Path(folder).expanduser()
    return Path(platformdirs.user_cache_dir("metanb", appauthor=False)) / "data"


def load_images(
    dataset: str,
    split: str,
    *,
    rotations: bool = False,
    root: Path | str | None = None,
    seed: int = 0,
) -> ImageSet:
    """Load one split of a data set from the cache; decode or render it first if it is not there.

    Args:
        dataset: "omniglot" (28x28 grey; torchvision downloads it when it is not there),
            "mini-imagenet" (84x84 RGB; never downloaded), "glyphs" (28x28 grey, rendered), or
            the name of a folder under the data root, see `metanb.data.image_folders`.
        split: "train", "valid" or "test".
        rotations: for Omniglot's train split only: each class also turned by 90, 180 and 270
            degrees, counterclockwise, as new classes, as in Finn et al. 2017. That makes four times
            the classes, in four blocks of the unrotated order.
        root: the data root; `data_root()` if None.
        seed: for glyphs only: seed of the faces' order and the jitter, not of the classes.

    Raises:
        DataError: the data set is missing, or has a wrong number of classes or images, or an
            unreadable image. (A cache that is damaged, half written or of other sources is
            rebuilt.)
        metanb.files.DiskError: the cache cannot be written.
        ValueError: an unknown name, or an option that this data set does not have.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     images = load_images("glyphs", "valid", root=folder)
        >>> images.images.shape[1:], images.images.dtype, images.classes[0]
        ((20, 1, 28, 28), dtype('uint8'), 'U+05D0 א')
    """
    _check_request(dataset, split, rotations, seed)
    folder = data_root() if root is None else Path(root)
    images, names, counts, digest = _read_split(folder, dataset, split, seed)
    if rotations:
        quarters = range(4)
        images = np.concatenate([np.rot90(images, quarter, axes=(-2, -1)) for quarter in quarters])
        images.flags.writeable = False
        names = tuple(f"{name}@{90 * quarter}" for quarter in quarters for name in names)
        counts = 4 * counts
        digest = digest_of(names, counts, images)
    return ImageSet(dataset, split, images, names, digest, counts)


def content_of(dataset: str, root: Path | str | None = None) -> str:
    """The content of a data set of one's own: shape and digest of its images, "CxHxW-digest".

    Settings hold it, so that runs on other images under the same name are other runs. It is "" for
    the data sets that metanb knows.

    Raises:
        DataError: as `load_images` does.
    """
    if dataset in ORIGINS:
        return ""
    sets = [load_images(dataset, split, root=root) for split in SPLITS]
    digest = hashlib.sha256("".join(images.digest for images in sets).encode()).hexdigest()[:16]
    return f"{'x'.join(map(str, sets[0].images.shape[2:]))}-{digest}"


def keep_classes(images: ImageSet, n: int, seed: int) -> ImageSet:
    """Keep n of the set's classes, drawn by the seed.

    Subsets of one seed are nested: the first 10 classes are among the first 20.

    Raises:
        DataError: the set has fewer classes.
        ValueError: n is below 1.

    Example:
        >>> pixels = np.zeros((5, 2, 1, 4, 4), np.uint8)
        >>> images = ImageSet("blank", "train", pixels, tuple("abcde"), digest="")
        >>> keep_classes(images, 2, seed=0).classes
        ('d', 'c')
        >>> keep_classes(images, 3, seed=0).classes
        ('d', 'c', 'b')
    """
    n_classes = len(images.classes)
    if n < 1:
        raise ValueError(f"n is {n}: keep at least 1 class")
    if n > n_classes:
        raise DataError(
            f"{images.name} {images.split} has {n_classes} classes, not {n}: keep fewer"
        )
    kept = np.argsort(np.random.default_rng(seed).random(n_classes))[:n]
    pixels = images.images[kept]
    pixels.flags.writeable = False
    names = tuple(images.classes[i] for i in kept)
    counts = tuple(images.counts[i] for i in kept)
    digest = digest_of(names, counts, pixels)
    return ImageSet(images.name, images.split, pixels, names, digest, counts)


def check_images(dataset: str, root: Path | str | None = None) -> str:
    """Check a data set as a whole, without a download, and summarise it: counts and digests.

    Raises:
        DataError: what is wrong, and the remedy.
        ValueError: an unknown name.
    """
    _check_request(dataset, "train", rotations=False, seed=0)
    root = data_root() if root is None else Path(root)
    trees = ""
    if dataset == "omniglot":
        halves = " + ".join(f"{half} {omniglot.check_tree(root, half)}" for half in omniglot.HALVES)
        trees = f"; {halves} characters of {omniglot.DRAWERS} drawings"
    splits = []
    for split in SPLITS:
        images, _, counts, digest = _read_split(root, dataset, split, 0, verify=True)
        per_class = "-".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))
        splits.append(f"{split} {images.shape[0]:,} x {per_class} ({digest})")
    shape = "x".join(map(str, images.shape[2:]))
    return f"{' / '.join(splits)}, classes x images (digest), each {shape}{trees}"


def fetch_images(dataset: str, root: Path | str | None = None) -> str:
    """Get a data set as far as its terms allow, then check it as `check_images` does.

    Omniglot is downloaded by torchvision, glyphs are rendered.

    Raises:
        DataError: the data set cannot be had this way; the message says what to put where.
    """
    root = data_root() if root is None else Path(root)
    if dataset == "omniglot":
        omniglot.download(root)
    return check_images(dataset, root)


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: one of {', '.join(SPLITS)}")


def _check_request(dataset: str, split: str, rotations: bool, seed: int) -> None:
    """Raise ValueError for an unknown name, or an option that the data set does not have."""
    _check_split(split)
    if dataset != "omniglot" and rotations:
        raise ValueError(f"rotations=True: omniglot's, not {dataset}'s; leave it out")
    if rotations and split != "train":
        raise ValueError(
            f"rotations=True with split {split!r}: only train classes are rotated; leave it out"
        )
    if seed and dataset != "glyphs":
        raise ValueError(f"seed={seed}: glyphs only, not {dataset}; leave it out")


def _read_split(root: Path, dataset: str, split: str, seed: int, verify: bool = False) -> Content:
    """One split as its cache has it, without rotations.

    With `verify` all of it is read, and what it was made from, and their digests are compared.
    """
    if dataset in ORIGINS:
        origin = ORIGINS[dataset](root, split, seed)
    elif not OWN_DATASET.fullmatch(dataset):
        raise DataError(
            f"data set {dataset!r} does not match {OWN_DATASET.pattern}: give its folder under the "
            "data root such a name"
        )
    elif image_folders.is_image_folder(root / dataset):
        origin = image_folders.origin(root, dataset, split)
    else:
        raise DataError(
            f"no data set {dataset!r}: it is none of {', '.join(ORIGINS)}, and there is no folder "
            f"{root / dataset / 'train'}; put your own images there, one folder per class"
        )
    return read_or_build(root / "cache", origin, verify)
