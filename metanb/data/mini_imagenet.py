"""mini-ImageNet in the layout of Ravi and Larochelle 2017; its terms forbid passing it on, so it is never downloaded.

Under the data root: mini-imagenet/images/*, and mini-imagenet/{train,val,test}.csv with the columns
filename,label.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from metanb.data.cache import DataError, Source, read_pixels

CLASSES = {"train": 64, "valid": 16, "test": 20}
REMEDY = "put the Ravi-Larochelle csv files there"


def split_csv(root: Path, split: str) -> bytes:
    """The split's csv file.

    Raises:
        DataError: it is not there; the message says what to put where.
    """
    folder = root / "mini-imagenet"
    path = folder / {"train": "train.csv", "valid": "val.csv", "test": "test.csv"}[split]
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"no {path} ({error.strerror}): mini-ImageNet is never downloaded; put the Ravi-Larochelle split there: "
            f"train.csv, val.csv, test.csv (columns filename,label) in {folder}, the images in {folder / 'images'}; "
            "or set METANB_DATA to a folder whose mini-imagenet folder has them"
        ) from error


def mini_imagenet_source(root: Path, split: str) -> Source:
    """Labels, sorted, and images, uint8 [per_class, 3, 84, 84], in the order of the split's csv file.

    Raises:
        DataError: a wrong count of classes, classes of unequal size, a file twice, a class in two
            splits, an image missing or unreadable.
    """
    classes = _classes(root, split)
    for other in sorted(CLASSES.keys() - {split}):
        if shared := classes.keys() & _classes(root, other).keys():
            raise DataError(
                f"mini-imagenet has class {min(shared)} in both {split} and {other}; {REMEDY}"
            )
    folder = root / "mini-imagenet" / "images"
    missing = [
        name for files in classes.values() for name in files if not (folder / name).is_file()
    ]
    if missing:
        raise DataError(
            f"no {folder / missing[0]}, one of {len(missing)} images that {split} lacks; put them there"
        )

    def decode() -> Iterator[np.ndarray]:
        for files in classes.values():
            yield np.stack(
                [read_pixels(folder / name, "RGB", 84).transpose(2, 0, 1) for name in files]
            )

    return list(classes), decode()


def _classes(root: Path, split: str) -> dict[str, list[str]]:
    """Label -> file names, checked: 64 / 16 / 20 classes of equal size, no file twice."""
    classes: dict[str, list[str]] = {}
    where = f"mini-imagenet's {split} csv file in {root / 'mini-imagenet'}"
    try:
        for row in csv.DictReader(
            io.StringIO(split_csv(root, split).decode("utf-8-sig"), newline="")
        ):
            classes.setdefault(row["label"], []).append(row["filename"])
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{where} has no columns filename,label ({error!r}); {REMEDY}") from error
    if len(classes) != CLASSES[split]:
        raise DataError(f"{where} has {len(classes)} classes, not {CLASSES[split]}; {REMEDY}")
    sizes = {label: len(files) for label, files in classes.items()}
    low, high = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    if sizes[low] != sizes[high]:
        raise DataError(
            f"{where}: class {low} has {sizes[low]} images, class {high} has {sizes[high]}; {REMEDY}"
        )
    files = [name for names in classes.values() for name in names]
    if len(set(files)) != len(files):
        raise DataError(
            f"{where} names {len(files) - len(set(files))} files more than once; {REMEDY}"
        )
    return dict(sorted(classes.items()))
