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
from tqdm import tqdm

from metanb import files

DECODER = 1  # raise it whenever decoding changes: caches of another number are rebuilt
# Bytes. A smaller cache is read and verified at each load, a larger one (mini-ImageNet) is mapped.
IN_MEMORY = 32 * 2**20


class Source(NamedTuple):
    """One split, as it is read: class by class, so that it need not fit in memory."""

    names: list[str]  #: of the classes
    counts: list[int]  #: images per class
    blocks: Iterator[np.ndarray]  #: the images of each class, uint8 [count, C, H, W]


class Content(NamedTuple):
    """One split, as the cache holds it."""

    #: uint8 [classes, most images per class, C, H, W]; behind a smaller class's images are zeros
    images: np.ndarray
    names: tuple[str, ...]  #: of the classes
    counts: tuple[int, ...]  #: images per class
    digest: str  #: first 16 hex digits of the SHA-256 of shape, names, counts and pixels


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
        verify: read all of a cache, and all that it was made from, and compare their digests.

    Raises:
        DataError: from the source; or the cache does not read back as written.
        metanb.files.DiskError: the cache cannot be written.
    """
    path = folder / f"{origin.key}.npy"
    content = _read_cache(path, origin.stamp, verify)
    if content is not None and verify and _digest_of_source(_watched(origin)) != content.digest:
        with files.writing(path):
            path.with_suffix(".json").unlink()  # it is of other images: build it again
        content = None
    if content is None:
        with files.locked(path.with_suffix(".lock"), f"image set {path.stem}"):
            # Another process may have built it while this one waited for the lock.
            content = _read_cache(path, origin.stamp, verify)
            if content is None:
                _write_cache(path, origin.stamp, _watched(origin))
                content = _read_cache(path, origin.stamp, verify)
    if content is None:
        raise DataError(
            f"the cache {path} does not read back as written; check the disk, or set METANB_DATA "
            "elsewhere"
        )
    return content


def _watched(origin: Origin) -> Source:
    """What the origin's source gives; on a terminal a bar shows how many classes have been read."""
    source = origin.source()
    blocks = tqdm(
        source.blocks,
        f"reading {origin.key}",
        total=len(source.names),
        unit="class",
        leave=False,
        disable=None,  # unless standard error is a terminal
        dynamic_ncols=True,
    )
    return source._replace(blocks=iter(blocks))


def pad_classes(source: Source) -> tuple[tuple[int, ...], Iterator[bytes]]:
    """Make all classes as large as the largest one, by zeros.

    Returns:
        The shape of the whole, [classes, most images per class, C, H, W], and its bytes class by
        class.
    """
    first = next(source.blocks)
    most = max(source.counts)
    image_bytes = first[0].size
    contents = (
        block.tobytes() + bytes((most - len(block)) * image_bytes)
        for block in chain([first], source.blocks)
    )
    return (len(source.names), most, *first.shape[1:]), contents


def digest_of(names: Sequence[str], counts: Sequence[int], images: np.ndarray) -> str:
    """First 16 hex digits of the SHA-256 of shape, class names and pixels.

    The numbers of images per class count, too, where they are not all the same.
    """
    sha = _hash_header(names, counts, images.shape)
    for block in images:
        sha.update(np.ascontiguousarray(block).data)
    return sha.hexdigest()[:16]


def _read_cache(path: Path, stamp: str, verify: bool) -> Content | None:
    """The content of a cache, or None unless it is whole and of this decoder and stamp.

    Size and shape are compared with the record, and the digest if the cache is small or `verify`.
    """
    try:
        record = files.parse_json(path.with_suffix(".json").read_text(encoding="utf-8"))
        recorded = record["decoder"], record["stamp"], record["bytes"]
        if recorded != (DECODER, stamp, path.stat().st_size):
            return None
        mapped = record["bytes"] > IN_MEMORY
        images = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        if images.dtype != np.uint8 or list(images.shape) != record["shape"]:
            return None
        names = tuple(record["classes"])
        counts = tuple(record.get("counts") or [images.shape[1]] * len(names))
        digest = str(record["digest"])
        if (verify or not mapped) and digest_of(names, counts, images) != digest:
            return None
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None
    images.flags.writeable = False
    return Content(images, names, counts, digest)


def _write_cache(path: Path, stamp: str, source: Source) -> None:
    """Write class by class, so that a set need not fit in memory. The caller holds the lock."""
    record_path = path.with_suffix(".json")
    shape, contents = pad_classes(source)
    sha = _hash_header(source.names, source.counts, shape)
    # Remove the old record first: no reader may pair it with the new images.
    with files.writing(record_path):
        record_path.unlink(missing_ok=True)
    with files.replacing(path) as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for content in contents:
            sha.update(content)
            stream.write(content)
    record = {
        "decoder": DECODER,
        "stamp": stamp,
        "bytes": path.stat().st_size,
        "shape": shape,
        "digest": sha.hexdigest()[:16],
        "classes": source.names,
    }
    if min(source.counts) < shape[1]:
        record["counts"] = source.counts
    files.replace(record_path, json.dumps(record).encode())


def _digest_of_source(source: Source) -> str:
    """The digest that the cache of a source would have."""
    shape, contents = pad_classes(source)
    sha = _hash_header(source.names, source.counts, shape)
    for content in contents:
        sha.update(content)
    return sha.hexdigest()[:16]


def _hash_header(
    names: Sequence[str], counts: Sequence[int], shape: tuple[int, ...]
) -> "hashlib._Hash":
    """A SHA-256 that has read shape, class names and unequal counts; pixels come next."""
    header = [list(shape), list(names)]
    if min(counts) < shape[1]:
        header.append(list(counts))
    return hashlib.sha256(json.dumps(header).encode())
