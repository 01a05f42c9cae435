"""A data set of one's own: a folder of images, one folder per class, in torchvision's layout.

    <folder>/train/<class>/*.png        meta-train classes; .jpg, .webp and others, too
    <folder>/valid/<class>/*.png        meta-validation classes ("val" will do)
    <folder>/test/<class>/*.png         meta-test classes

Classes may have different numbers of images. Few-shot splits have different classes, so a class may
be in one split only, and so may an image. All images become squares of one side: the shortest side
of all of them, at most `LARGEST_SIDE`. What is not square is cropped around its centre. They are
grey if all of them are, else RGB.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from metanb.data.cache import DataError, Origin, Source
from metanb.data.pixels import open_image, opened_image

LARGEST_SIDE = 84  # pixels, as mini-ImageNet
FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
GREY = ("1", "L", "LA", "I", "I;16", "I;16B")  # modes of Pillow without colour
# Names of the folder of each split: the first one that is there counts.
SPLIT_FOLDERS = {"train": ("train",), "valid": ("valid", "val"), "test": ("test",)}


def is_image_folder(folder: Path) -> bool:
    """Return whether a folder has the layout: a folder `train` in it."""
    return (folder / "train").is_dir()


def origin(root: Path, name: str, split: str) -> Origin:
    """What a split of the data set `name`, a folder under the data root, is made from.

    Raises:
        DataError: as `folder_source` does for the layout.
    """
    folder = root / name
    stamp = hashlib.sha256()
    with _naming_files():
        for of_split in SPLIT_FOLDERS:
            for paths in list_classes(folder, of_split).values():
                for path in paths:
                    state = path.stat()
                    line = f"{path.relative_to(folder)} {state.st_size} {state.st_mtime_ns}\n"
                    stamp.update(line.encode())
    return Origin(
        f"folder-{name}-{split}", stamp.hexdigest()[:16], partial(folder_source, folder, split)
    )


def folder_source(folder: Path, split: str) -> Source:
    """Names and images of a split's classes, sorted.

    The images of a class are uint8 [n, C, side, side].

    Raises:
        DataError: a split or a class has no images, a class or an image is in two splits, or an
            image is unreadable.
    """
    with _naming_files():
        splits = {name: list_classes(folder, name) for name in SPLIT_FOLDERS}
        _require_apart(splits)
    everything = [path for classes in splits.values() for of in classes.values() for path in of]
    side, mode = _choose_shape(everything)
    classes = splits[split]

    def decode() -> Iterator[np.ndarray]:
        for paths in classes.values():
            yield np.stack([_read_square(path, side, mode) for path in paths])

    return Source(list(classes), [len(paths) for paths in classes.values()], decode())


def list_classes(folder: Path, split: str) -> dict[str, list[Path]]:
    """List the image files of each class of a split, both sorted.

    Raises:
        DataError: the split is not there, a class has no images, or a name is not UTF-8.
    """
    places = [folder / name for name in SPLIT_FOLDERS[split] if (folder / name).is_dir()]
    if not places:
        raise DataError(
            f"no {folder / split}: put the classes of this split there, one folder of images each"
        )
    classes: dict[str, list[Path]] = {}
    for class_folder in sorted(places[0].iterdir()):
        if class_folder.is_dir() and not class_folder.name.startswith("."):
            _require_utf8(class_folder)
            paths = [
                path
                for path in sorted(class_folder.iterdir())
                if path.suffix.lower() in FORMATS and not path.name.startswith(".")
            ]
            if not paths:
                raise DataError(
                    f"{class_folder} has no images ({', '.join(FORMATS)}): put some there, or "
                    "remove it"
                )
            for path in paths:
                _require_utf8(path)
            classes[class_folder.name] = paths
    if not classes:
        raise DataError(f"{places[0]} has no classes: put one folder of images per class there")
    return classes


@contextmanager
def _naming_files() -> Iterator[None]:
    """Turn an OSError inside, as of a link that leads nowhere, into a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename} ({error.strerror}): put a whole copy there, or remove it"
        ) from error


def _require_utf8(path: Path) -> None:
    """Raise DataError for a name whose bytes are no UTF-8: it cannot be hashed or recorded."""
    try:
        path.name.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise DataError(f"{shown} has a name that is not UTF-8: rename it") from None


def _require_apart(splits: dict[str, dict[str, list[Path]]]) -> None:
    """Raise DataError for a class, or an image, that is in two splits."""
    split_of_class: dict[str, str] = {}
    paths_by_size: dict[int, list[tuple[str, Path]]] = {}
    for split, classes in splits.items():
        for name, paths in classes.items():
            if (earlier := split_of_class.setdefault(name, split)) != split:
                raise DataError(
                    f"class {name} is in {earlier} and in {split}: meta-test classes have to be "
                    "new, so keep each class in one split"
                )
            for path in paths:
                paths_by_size.setdefault(path.stat().st_size, []).append((split, path))
    # Files of equal size in different splits may be copies.
    for candidates in paths_by_size.values():
        if len({split for split, _ in candidates}) < 2:
            continue
        first_with: dict[bytes, tuple[str, Path]] = {}
        for split, path in candidates:
            digest = hashlib.sha256(path.read_bytes()).digest()
            other_split, other_path = first_with.setdefault(digest, (split, path))
            if other_split != split:
                raise DataError(
                    f"{path} is a copy of {other_path}, which is in another split: keep one of them"
                )


def _choose_shape(paths: list[Path]) -> tuple[int, str]:
    """The side that all images get, and their mode: "L" or "RGB"."""
    side, mode = LARGEST_SIDE, "L"
    for path in paths:
        with opened_image(path) as file:
            side = min(side, *file.size)
            if file.mode not in GREY:
                mode = "RGB"
    return side, mode


def _read_square(path: Path, side: int, mode: str) -> np.ndarray:
    """One image, uint8 [C, side, side]."""
    image, _ = open_image(path, mode)
    square = ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
    return np.moveaxis(np.atleast_3d(np.asarray(square)), -1, 0)
