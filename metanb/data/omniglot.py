"""Omniglot as torchvision extracts it: splits, check of its two trees, download, pixels.

The tree, under the data root:

    omniglot-py/images_{background,evaluation}/<Alphabet>/<characterNN>/*.png
"""

import csv
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from metanb import files
from metanb.data.cache import DataError, Origin, Source
from metanb.data.pixels import read_pixels
from metanb.labels import DATASETS

HALVES = ("background", "evaluation")
DRAWERS = 20  # people who drew each character once
ORIGINAL_SIDE = 105  # height and width of the files, pixels


def roster() -> list[tuple[str, str, str]]:
    """List all 1,623 characters: half, split of Vinyals et al. 2016, "<Alphabet>/<characterNN>"."""
    with open(Path(__file__).with_name("vinyals.csv"), encoding="utf-8") as stream:
        alphabets = list(csv.DictReader(line for line in stream if not line.startswith("#")))
    characters = []
    for alphabet in alphabets:
        number = 0
        # The characters of an alphabet go to the splits in this order.
        for split in ("train", "valid", "test"):
            for _ in range(int(alphabet[split])):
                number += 1
                name = f"{alphabet['alphabet']}/character{number:02d}"
                characters.append((alphabet["half"], split, name))
    return characters


def members(split: str) -> list[tuple[str, str]]:
    """List half and name of each character of one split of Vinyals et al."""
    return [(half, name) for half, of_split, name in roster() if of_split == split]


def check_tree(root: Path, half: str) -> int:
    """Check that a half has the right characters with 20 drawings each, and return their number.

    Raises:
        DataError: the half is not there, a character is missing or unknown, or its drawings are not
            20.
    """
    top = root / "omniglot-py" / f"images_{half}"
    if not top.is_dir():
        raise DataError(f"no {top}: run `metanb data fetch omniglot`")
    remedy = f"delete {top} and run `metanb data fetch omniglot`"
    expected = {name for of_half, _, name in roster() if of_half == half}
    folders = [folder for folder in top.glob("*/*") if folder.is_dir()]
    present = {f"{folder.parent.name}/{folder.name}" for folder in folders}
    missing = expected - present
    unknown = present - expected
    if names := missing or unknown:
        kind = "missing" if missing else "unknown"
        raise DataError(
            f"{top} has {len(present)} characters, not {len(expected)}: "
            f"{kind} {min(names)} ({len(names)} in all); {remedy}"
        )
    for name in sorted(expected):
        if (count := len(_drawings(top / name))) != DRAWERS:
            raise DataError(f"{top / name} has {count} drawings, not {DRAWERS}; {remedy}")
    return len(expected)


def download(root: Path) -> None:
    """Download the halves that are not there, by torchvision, which checks the zip files' MD5.

    A zip file that was put there by hand is extracted.

    Raises:
        DataError: torchvision cannot download; the message says which files to put where.
    """
    folder = root / "omniglot-py"
    with files.locked(root / "cache" / "omniglot-download.lock", "the download of Omniglot"):
        for half in HALVES:
            top = folder / f"images_{half}"
            archive = folder / f"images_{half}.zip"
            if top.is_dir():
                continue
            # Here, since torchvision takes seconds to import.
            from torchvision.datasets import Omniglot
            from torchvision.datasets.utils import check_integrity, extract_archive

            try:
                # torchvision does not extract a whole zip file that it did not download itself.
                if check_integrity(str(archive), Omniglot.zips_md5[top.name]):
                    extract_archive(str(archive), str(folder))
                else:
                    Omniglot(str(root), background=half == "background", download=True)
            except (OSError, RuntimeError, ValueError, EOFError) as error:
                raise DataError(
                    f"no {top}, and torchvision could not download it ({error}): "
                    f"put {archive.name} of github.com/brendenlake/omniglot (folder python) "
                    f"into {folder}, or its content, and try again"
                ) from error


def origin(root: Path, split: str, seed: int) -> Origin:
    """What a split is made from: the drawings; the seed changes nothing."""
    return Origin(f"omniglot-vinyals-{split}", "", partial(omniglot_source, root, split))


def omniglot_source(root: Path, split: str) -> Source:
    """Names and images of a split's characters; Omniglot is downloaded if it is absent.

    The images of a character are uint8 [20, 1, 28, 28], with ink 255 on 0.

    Raises:
        DataError: as `download` and `check_tree` do, or an image is unreadable.
    """
    download(root)
    for half in HALVES:
        check_tree(root, half)
    characters = members(split)

    def decode() -> Iterator[np.ndarray]:
        for half, name in characters:
            folder = root / "omniglot-py" / f"images_{half}" / name
            paths = [folder / file for file in _drawings(folder)]
            kind = DATASETS["omniglot"]
            yield 255 - np.stack([read_pixels(path, kind, ORIGINAL_SIDE) for path in paths])

    return Source([name for _, name in characters], [DRAWERS] * len(characters), decode())


def _drawings(folder: Path) -> list[str]:
    """Names of a character's image files, sorted."""
    return sorted(
        name for name in os.listdir(folder) if name.endswith(".png") and not name.startswith(".")
    )
