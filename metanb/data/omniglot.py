"""Omniglot as torchvision extracts it: its splits, the check of its two trees, its download, its pixels.

The tree, under the data root:
omniglot-py/images_{background,evaluation}/<Alphabet>/<characterNN>/*.png
"""

import csv
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from metanb import files
from metanb.data.cache import DataError, Source, read_pixels

HALVES = ("background", "evaluation")
DRAWERS = 20  # of each character


def roster() -> list[tuple[str, str, str]]:
    """Half, split of Vinyals et al.

    2016, and "<Alphabet>/<characterNN>" of all 1,623 characters.
    """
    with open(Path(__file__).with_name("vinyals.csv"), encoding="utf-8") as stream:
        rows = list(csv.DictReader(line for line in stream if not line.startswith("#")))
    out = []
    for row in rows:
        splits = [split for split in ("train", "valid", "test") for _ in range(int(row[split]))]
        out += [
            (row["half"], split, f"{row['alphabet']}/character{i:02d}")
            for i, split in enumerate(splits, 1)
        ]
    return out


def members(partition: str, split: str) -> list[tuple[str, str]]:
    """Half and name of each character of one split: Vinyals', or by "background" all of the evaluation half as test."""
    return [
        (half, name)
        for half, where, name in roster()
        if split == ("test" if partition == "background" and half == "evaluation" else where)
    ]


def check_tree(root: Path, half: str) -> int:
    """How many characters a half has, once it is sure that they are the right ones, of 20 drawings each.

    Raises:
        DataError: the half is not there, a character is missing or unknown, or its drawings are not
            20.
    """
    top = root / "omniglot-py" / f"images_{half}"
    if not top.is_dir():
        raise DataError(f"no {top}: run `metanb data fetch omniglot`")
    remedy = f"delete {top} and run `metanb data fetch omniglot`"
    expected = {name for where, _, name in roster() if where == half}
    there = {f"{folder.parent.name}/{folder.name}" for folder in top.glob("*/*") if folder.is_dir()}
    if there != expected:
        kind, names = (
            ("missing", expected - there) if expected - there else ("unknown", there - expected)
        )
        raise DataError(
            f"{top} has {len(there)} characters, not {len(expected)}: {kind} {min(names)} ({len(names)} in all); "
            f"{remedy}"
        )
    for name in sorted(expected):
        if (count := len(_drawings(top / name))) != DRAWERS:
            raise DataError(f"{top / name} has {count} drawings, not {DRAWERS}; {remedy}")
    return len(expected)


def download(root: Path) -> None:
    """By torchvision, which checks the zip files' MD5; a half that is there already is left alone.

    Raises:
        DataError: torchvision could not; the message says which files to put where.
    """
    folder = root / "omniglot-py"
    with files.locked(root / "cache" / "omniglot-download.lock", "the download of Omniglot"):
        for half in HALVES:
            top, archive = folder / f"images_{half}", folder / f"images_{half}.zip"
            if top.is_dir():
                continue
            # here, since torchvision takes seconds to import
            from torchvision.datasets import Omniglot
            from torchvision.datasets.utils import check_integrity, extract_archive

            try:
                # then torchvision would not extract it
                if check_integrity(str(archive), Omniglot.zips_md5[top.name]):
                    extract_archive(str(archive), str(folder))
                else:
                    Omniglot(str(root), background=half == "background", download=True)
            except (OSError, RuntimeError, ValueError, EOFError) as error:
                raise DataError(
                    f"no {top}, and torchvision could not download it ({error}): put {archive.name} of "
                    f"github.com/brendenlake/omniglot (folder python) into {folder}, or its content, and try again"
                ) from error


def omniglot_source(root: Path, partition: str, split: str) -> Source:
    """Names and images, uint8 [20, 1, 28, 28] with ink 255 on 0, of a split's characters; downloaded if absent.

    Raises:
        DataError: as `download` and `check_tree` do, or an image is unreadable.
    """
    download(root)
    for half in HALVES:
        check_tree(root, half)
    chosen = members(partition, split)

    def decode() -> Iterator[np.ndarray]:
        for half, name in chosen:
            folder = root / "omniglot-py" / f"images_{half}" / name
            yield np.stack(
                [
                    255 - read_pixels(folder / file, "L", 28, exactly=105)[None]
                    for file in _drawings(folder)
                ]
            )

    return [name for _, name in chosen], decode()


def _drawings(folder: Path) -> list[str]:
    return sorted(
        name for name in os.listdir(folder) if name.endswith(".png") and not name.startswith(".")
    )
