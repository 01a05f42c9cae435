"""The checked cache of decoded images: a .npy file with a .json record per split of a data set.

A split is decoded once. Its cache is used only if it is whole.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from metanb import files
from metanb.labels import ImageKind

DECODER = 1  # raise it whenever decoding changes: caches of another number are rebuilt
# Bytes. A smaller cache is read and verified at each load, a larger one (mini-ImageNet) is mapped.
IN_MEMORY = 32 * 2**20

# Class names; the images of one class after the other, uint8 [per_class, C, H, W].
Source = tuple[list[str], Iterator[np.ndarray]]
# Images, uint8 [classes, per_class, C, H, W]; class names; digest.
Content = tuple[np.ndarray, tuple[str, ...], str]


class Origin(NamedTuple):
    """What one split of a data set is made from."""

    key: str  #: name of the cache
    stamp: str  #: identifies the files or fonts; not part of the digest
    source: Callable[[], Source]  #: reads them


class DataError(RuntimeError):
    """An image set is missing, incomplete, damaged or too small.

    The message is one line: the thing, the value and the remedy.
    """


def read_or_build(folder: Path, origin: Origin, verify: bool = False) -> Content:
    """Read a cache; build it first if it is absent, damaged, half written or of another stamp.

    Args:
        folder: of the caches.
        origin: what the images are made from; its source is called by one process at a time.
        verify: compare the digest of a mapped cache, too, which reads all of it.

    Raises:
        DataError: from the source; or the cache does not read back as written.
        metanb.files.DiskError: the cache cannot be written.
    """
    path = folder / f"{origin.key}.npy"
    content = _read_cache(path, origin.stamp, verify)
    if content is None:
        with files.locked(path.with_suffix(".lock"), f"image set {path.stem}"):
            # Another process may have built it while this one waited for the lock.
            content = _read_cache(path, origin.stamp, verify)
            if content is None:
                _write_cache(path, origin.stamp, *origin.source())
                content = _read_cache(path, origin.stamp, verify)
    if content is None:
        raise DataError(
            f"the cache {path} does not read back as written; check the disk, or set METANB_DATA "
            "elsewhere"
        )
    return content


def digest_of(names: Sequence[str], images: np.ndarray) -> str:
    """First 16 hex digits of the SHA-256 of shape, class names and pixels."""
    sha = _hash_header(names, images.shape)
    for block in images:
        sha.update(np.ascontiguousarray(block).data)
    return sha.hexdigest()[:16]


def read_pixels(path: Path, kind: ImageKind, original_side: int | None = None) -> np.ndarray:
    """Read one image file, uint8 [C, H, W] of the kind's shape, resized by Lanczos if need be.

    Args:
        path: the file.
        kind: gives channels and side.
        original_side: the height and width, pixels, that the file must have; None: any.

    Raises:
        DataError: the file is unreadable, or not of `original_side`.
    """
    try:
        with Image.open(path) as file:
            original_size = file.size
            # Convert first: Pillow resizes images of mode "1" by nearest neighbour, whatever
            # filter is given.
            image = file.convert("RGB" if kind.channels == 3 else "L")
            if original_size != (kind.side, kind.side):
                image = image.resize((kind.side, kind.side), Image.Resampling.LANCZOS)
            pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"unreadable image {path} ({error}); put a whole copy there") from error
    if original_side is not None and original_size != (original_side, original_side):
        width, height = original_size
        raise DataError(
            f"{path} is {width}x{height}, not {original_side}x{original_side}; "
            "put the original there"
        )
    return np.moveaxis(np.atleast_3d(pixels), -1, 0)


def _read_cache(path: Path, stamp: str, verify: bool) -> Content | None:
    """The content of a cache, or None unless it is whole and of this decoder and stamp.

    Size and shape are compared with the record, and the digest if the cache is small or `verify`.
    """
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        recorded = record["decoder"], record["stamp"], record["bytes"]
        if recorded != (DECODER, stamp, path.stat().st_size):
            return None
        mapped = record["bytes"] > IN_MEMORY
        images = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        if images.dtype != np.uint8 or list(images.shape) != record["shape"]:
            return None
        names = tuple(record["classes"])
        digest = str(record["digest"])
        if (verify or not mapped) and digest_of(names, images) != digest:
            return None
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None
    images.flags.writeable = False
    return images, names, digest


def _write_cache(path: Path, stamp: str, names: list[str], blocks: Iterator[np.ndarray]) -> None:
    """Write class by class, so that a set need not fit in memory. The caller holds the lock."""
    record_path = path.with_suffix(".json")
    first_block = next(blocks)
    shape = (len(names), *first_block.shape)
    sha = _hash_header(names, shape)
    # Remove the old record first: no reader may pair it with the new images.
    with files.writing(record_path):
        record_path.unlink(missing_ok=True)
    with files.replacing(path) as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for block in chain([first_block], blocks):
            content = block.tobytes()
            sha.update(content)
            stream.write(content)
    record = {
        "decoder": DECODER,
        "stamp": stamp,
        "bytes": path.stat().st_size,
        "shape": shape,
        "digest": sha.hexdigest()[:16],
        "classes": names,
    }
    files.replace(record_path, json.dumps(record).encode())


def _hash_header(names: Sequence[str], shape: tuple[int, ...]) -> "hashlib._Hash":
    """A SHA-256 that has read shape and class names, and goes on with the pixels."""
    return hashlib.sha256(json.dumps([list(shape), list(names)]).encode())
