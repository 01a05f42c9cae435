"""The checked cache: an image set is decoded once, into a .npy file with a .json record, and used only if whole."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from metanb import files

DECODER = 1  # raise it whenever decoding changes: caches of another number are rebuilt
# bytes: smaller caches are read and verified at each load, larger ones (mini-ImageNet) mapped
IN_MEMORY = 32 * 2**20

# class names, and each class's images, uint8 [per_class, C, H, W]
Source = tuple[list[str], Iterator[np.ndarray]]
# images, uint8 [classes, per_class, C, H, W]; class names; digest
Content = tuple[np.ndarray, tuple[str, ...], str]


class DataError(RuntimeError):
    """An image set is missing, incomplete, damaged or too small; one line: the thing, the value and the remedy."""


def read_or_build(
    path: Path, stamp: str, source: Callable[[], Source], verify: bool = False
) -> Content:
    """The content of a cache; absent, damaged, half written or of another stamp, it is built first.

    Args:
        path: the .npy file.
        stamp: of what the images are made from; not part of the digest.
        source: called to build, by one process at a time.
        verify: compare the digest of a mapped cache, too: all of it is read.

    Raises:
        DataError: from `source`; or the cache does not read back as written.
        metanb.files.DiskError: the cache cannot be written.
    """
    if (found := _read(path, stamp, verify)) is None:
        with files.locked(path.with_suffix(".lock"), f"image set {path.stem}"):
            # perhaps built while this process waited
            if (found := _read(path, stamp, verify)) is None:
                _write(path, stamp, *source())
                found = _read(path, stamp, verify)
    if found is None:
        raise DataError(
            f"the cache {path} does not read back as written; check the disk, or set METANB_DATA elsewhere"
        )
    return found


def digest_of(names: Sequence[str], images: np.ndarray) -> str:
    """First 16 hex digits of the SHA-256 of shape, class names and pixels."""
    sha = _header(names, images.shape)
    for block in images:
        sha.update(np.ascontiguousarray(block).data)
    return sha.hexdigest()[:16]


def read_pixels(path: Path, mode: str, side: int, exactly: int | None = None) -> np.ndarray:
    """One image file, uint8 [side, side] ("L") or [side, side, 3] ("RGB"), resized by Lanczos where it must be.

    Raises:
        DataError: it is unreadable, or has not the `exactly` pixels a side that are asked for.
    """
    try:
        with Image.open(path) as file:
            size = file.size
            # Convert first: Pillow resizes mode "1" images by nearest neighbour, whatever filter is
            # asked for.
            image = file.convert(mode)
            out = np.asarray(
                image
                if size == (side, side)
                else image.resize((side, side), Image.Resampling.LANCZOS)
            )
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"unreadable image {path} ({error}); put a whole copy there") from error
    if exactly is not None and size != (exactly, exactly):
        raise DataError(
            f"{path} is {size[0]}x{size[1]}, not {exactly}x{exactly}; put the original there"
        )
    return out


def _read(path: Path, stamp: str, verify: bool) -> Content | None:
    """None unless whole: this decoder and stamp, the recorded size, shape and (if small, or to `verify`) digest."""
    try:
        meta = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if (meta["decoder"], meta["stamp"], meta["bytes"]) != (DECODER, stamp, path.stat().st_size):
            return None
        mapped = meta["bytes"] > IN_MEMORY
        images = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        if images.dtype != np.uint8 or list(images.shape) != meta["shape"]:
            return None
        content = images, tuple(meta["classes"]), str(meta["digest"])
        if (verify or not mapped) and digest_of(content[1], images) != content[2]:
            return None
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None
    images.flags.writeable = False
    return content


def _write(path: Path, stamp: str, names: list[str], blocks: Iterator[np.ndarray]) -> None:
    """Write class by class, so that a set need not fit in memory. The caller holds the lock."""
    record = path.with_suffix(".json")
    first = next(blocks)
    shape = (len(names), *first.shape)
    sha = _header(names, shape)
    with files.writing(record):
        record.unlink(missing_ok=True)  # so that no reader pairs the new images with the old record
    with files.replacing(path) as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "|u1", "fortran_order": False, "shape": shape}
        )
        for block in chain([first], blocks):
            sha.update(block.tobytes())
            stream.write(block.tobytes())
    meta = {"decoder": DECODER, "stamp": stamp, "bytes": path.stat().st_size, "shape": shape}
    meta |= {"digest": sha.hexdigest()[:16], "classes": names}
    files.replace(record, json.dumps(meta).encode())


def _header(names: Sequence[str], shape: tuple[int, ...]) -> "hashlib._Hash":
    return hashlib.sha256(json.dumps([list(shape), list(names)]).encode())
