"""Labelled image sets: Omniglot, mini-ImageNet and Glyphs, each decoded once and then read from a checked cache.

All live under one data root, METANB_DATA or else the user's cache folder:

    omniglot-py/images_background/<Alphabet>/<characterNN>/*.png    as torchvision.datasets.Omniglot extracts it,
    omniglot-py/images_evaluation/<Alphabet>/<characterNN>/*.png    for both of its halves
    mini-imagenet/images/*                                          Ravi and Larochelle's layout:
    mini-imagenet/train.csv, val.csv, test.csv                      columns filename,label
    cache/                                                          what was decoded or rendered
"""

import hashlib
import os
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import platformdirs

from metanb.data import glyphs, mini_imagenet, omniglot
from metanb.data.cache import Content, read_or_build
from metanb.data.cache import DataError as DataError  # callers know it as images.DataError
from metanb.data.cache import digest_of as digest_of
from metanb.settings import CHOICES

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class ImageSet:
    """The images of one split of a data set, read-only."""

    name: str
    split: str  #: "train", "valid" or "test": meta-training, meta-validation, meta-test classes
    images: (
        np.ndarray
    )  #: uint8 [classes, per_class, C, H, W], perhaps a np.memmap; omniglot, glyphs: ink 255 on 0
    classes: tuple[str, ...]  #: name of each class, no two the same
    digest: str  #: first 16 hex digits of the SHA-256 of shape, class names and pixels

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 5:
            got = f"{self.images.dtype} {list(self.images.shape)}"
            raise DataError(
                f"{self.name} {self.split}: images are {got}; give uint8 [classes, per_class, C, H, W]"
            )
        if not len(self.images) == len(self.classes) == len(set(self.classes)):
            got = f"{len(set(self.classes))} different names for {len(self.images)} classes"
            raise DataError(f"{self.name} {self.split}: {got}; name each class once")


def data_root() -> Path:
    """METANB_DATA if set, else `metanb/data` in the user's cache folder."""
    given = os.environ.get("METANB_DATA")
    return (
        Path(given).expanduser()
        if given
        else Path(platformdirs.user_cache_dir("metanb", appauthor=False)) / "data"
    )


def load_images(
    dataset: str,
    split: str,
    *,
    partition: str = "vinyals",
    rotations: bool = False,
    root: Path | str | None = None,
    seed: int = 0,
) -> ImageSet:
    """One split of a data set, from the cache or decoded (rendered) into it.

    Args:
        dataset: "omniglot" (28x28 grey; downloaded by torchvision when it is not there),
            "mini-imagenet" (84x84 RGB; never downloaded), "glyphs" or "glyphs-all" (28x28 grey,
            rendered: about 300 and 2,600 classes).
        split: "train", "valid" or "test".
        partition: of Omniglot's characters. "vinyals": 1,028 / 172 / 423, as in Vinyals et al.
            2016. "background": test is the evaluation half (659); valid is the five background
            alphabets that Vinyals et al. validate on (Armenian, Bengali, Early Aramaic, Hebrew,
            Mkhedruli: 172), train the background half's other 25 (792).
        rotations: Omniglot's train split only: each class also turned by 90, 180 and 270 degrees,
            counterclockwise, as new classes, as in Finn et al. 2017: four times the classes, in
            four blocks of the unrotated order.
        root: the data root; `data_root()` if None.
        seed: glyphs only: of the faces' order and the jitter. The classes do not depend on it.

    Raises:
        DataError: the data set is missing, has a wrong count, a missing class or an unreadable
            image. (A cache that is damaged, half written or of other sources is rebuilt.)
        metanb.files.DiskError: the cache cannot be written.
        ValueError: an unknown name, or an option that this data set does not have.
    """
    _check_request(dataset, split, partition, rotations, seed)
    images, names, digest = _stored(
        data_root() if root is None else Path(root), dataset, split, partition, seed
    )
    if rotations:
        images = np.concatenate([np.rot90(images, quarter, axes=(-2, -1)) for quarter in range(4)])
        images.flags.writeable = False
        names = tuple(f"{name}@{90 * quarter}" for quarter in range(4) for name in names)
        digest = digest_of(names, images)
    return ImageSet(dataset, split, images, names, digest)


def keep_classes(images: ImageSet, n: int, seed: int) -> ImageSet:
    """The set with n of its classes only, drawn by the seed; of two numbers of classes, the fewer are among the more.

    Raises DataError if the set has fewer.
    """
    if n > len(images.classes):
        raise DataError(
            f"{images.name} {images.split} has {len(images.classes)} classes, not {n}: keep fewer"
        )
    chosen = np.argsort(np.random.default_rng(seed).random(len(images.classes)))[:n]
    kept, names = images.images[chosen], tuple(images.classes[i] for i in chosen)
    kept.flags.writeable = False
    return ImageSet(images.name, images.split, kept, names, digest_of(names, kept))


def check_images(dataset: str, root: Path | str | None = None) -> str:
    """Verify a data set as a whole, downloading nothing; the summary names what was found: counts and digests by split.

    Raises:
        DataError: what is wrong, and the remedy.
        ValueError: an unknown name.
    """
    _check_request(dataset, "train", "vinyals", rotations=False, seed=0)
    root = data_root() if root is None else Path(root)
    tail = ""
    if dataset == "omniglot":
        counts = " + ".join(f"{half} {omniglot.check_tree(root, half)}" for half in omniglot.HALVES)
        tail = f"; {counts} characters of {omniglot.DRAWERS} drawings"
    parts = []
    for split in SPLITS:
        images, _, digest = _stored(root, dataset, split, "vinyals", 0, verify=True)
        parts.append(f"{split} {images.shape[0]:,} x {images.shape[1]:,} ({digest})")
    return f"{' / '.join(parts)}, classes x images (digest), each {'x'.join(map(str, images.shape[2:]))}{tail}"


def fetch_images(dataset: str, root: Path | str | None = None) -> str:
    """Get a data set as far as its terms allow (Omniglot: torchvision downloads it; glyphs: rendered), then `check` it.

    Raises:
        DataError: it cannot be had this way; the message says what to put where.
    """
    root = data_root() if root is None else Path(root)
    if dataset == "omniglot":
        omniglot.download(root)
    return check_images(dataset, root)


def _check_request(dataset: str, split: str, partition: str, rotations: bool, seed: int) -> None:
    known = {
        "dataset": (dataset, CHOICES["dataset"]),
        "split": (split, SPLITS),
        "partition": (partition, CHOICES["partition"]),
    }
    for what, (value, choices) in known.items():
        if value not in choices:
            raise ValueError(f"{what} {value!r}: one of {', '.join(choices)}")
    if dataset != "omniglot" and (rotations or partition != "vinyals"):
        raise ValueError(
            f"partition={partition!r}, rotations={rotations}: omniglot's, not {dataset}'s; leave them out"
        )
    if rotations and split != "train":
        raise ValueError(
            f"rotations=True with split {split!r}: only train classes are rotated; leave it out"
        )
    if seed and not dataset.startswith("glyphs"):
        raise ValueError(f"seed={seed}: glyphs only, not {dataset}; leave it out")


def _stored(
    root: Path, dataset: str, split: str, partition: str, seed: int, verify: bool = False
) -> Content:
    """Images, class names and digest of one split, unrotated; `verify` reads mapped caches through, too."""
    if dataset == "omniglot":
        key, stamp = f"omniglot-{partition}-{split}", ""
        source = partial(omniglot.omniglot_source, root, partition, split)
    elif dataset == "mini-imagenet":
        key, stamp = (
            f"mini-imagenet-{split}",
            hashlib.sha256(mini_imagenet.split_csv(root, split)).hexdigest()[:16],
        )
        source = partial(mini_imagenet.mini_imagenet_source, root, split)
    elif dataset in ("glyphs", "glyphs-all"):
        key, stamp = (
            f"{dataset}-{seed}-{split}",
            f"design {glyphs.DESIGN}, matplotlib {version('matplotlib')}",
        )
        source = partial(glyphs.glyph_source, dataset == "glyphs-all", split, seed)
    else:
        raise DataError(
            f"data set {dataset!r} has no source yet: give it one in metanb/data/image_sets.py"
        )
    return read_or_build(root / "cache" / f"{key}.npy", stamp, source, verify)
