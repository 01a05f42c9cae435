"""mini-ImageNet in the layout of Ravi and Larochelle 2017, which is never downloaded.

Its terms forbid passing it on. Under the data root: mini-imagenet/images/*, and
mini-imagenet/{train,val,test}.csv with the columns filename,label.
"""

import csv
import hashlib
import io
import os
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from metanb.data.cache import DataError, Origin, Source
from metanb.data.pixels import read_pixels
from metanb.labels import DATASETS

CLASSES = {"train": 64, "valid": 16, "test": 20}
CSV_FILES = {"train": "train.csv", "valid": "val.csv", "test": "test.csv"}
REMEDY = "put the Ravi-Larochelle csv files there"


def split_csv(root: Path, split: str) -> bytes:
    """The content of the split's csv file.

    Raises:
        DataError: it is not there; the message says what to put where.
    """
    folder = root / "mini-imagenet"
    path = folder / CSV_FILES[split]
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"no {path} ({error.strerror}): mini-ImageNet is never downloaded; put the "
            f"Ravi-Larochelle split there: {', '.join(CSV_FILES.values())} (columns "
            f"filename,label) in {folder}, the images in {folder / 'images'}; or set METANB_DATA "
            "to a folder whose mini-imagenet folder has them"
        ) from error


def origin(root: Path, split: str, seed: int) -> Origin:
    """What a split is made from: the images that its csv file lists; the seed changes nothing."""
    stamp = hashlib.sha256(split_csv(root, split)).hexdigest()[:16]
    return Origin(f"mini-imagenet-{split}", stamp, partial(mini_imagenet_source, root, split))


def mini_imagenet_source(root: Path, split: str) -> Source:
    """Labels of a split, sorted, and their images in the order of the split's csv file.

    The images of a class are uint8 [per_class, 3, 84, 84].

    Raises:
        DataError: a wrong number of classes, classes of unequal size, a file twice, a class in two
            splits, an image missing or unreadable.
    """
    classes = _read_classes(root, split)
    for other_split in sorted(CLASSES.keys() - {split}):
        other_classes = _read_classes(root, other_split)
        if shared := classes.keys() & other_classes.keys():
            raise DataError(
                f"mini-imagenet has class {min(shared)} in both {split} and {other_split}; {REMEDY}"
            )
        other_files = set(chain.from_iterable(other_classes.values()))
        if leaked := other_files.intersection(chain.from_iterable(classes.values())):
            raise DataError(
                f"mini-imagenet has image {min(leaked)} in both {split} and {other_split}; {REMEDY}"
            )
    folder = root / "mini-imagenet" / "images"
    paths = {label: [folder / file for file in files] for label, files in classes.items()}
    missing = [path for of_class in paths.values() for path in of_class if not path.is_file()]
    if missing:
        raise DataError(
            f"no {missing[0]}, one of {len(missing)} images that {split} lacks; put them there"
        )

    def decode() -> Iterator[np.ndarray]:
        for of_class in paths.values():
            yield np.stack([read_pixels(path, DATASETS["mini-imagenet"]) for path in of_class])

    return Source(list(classes), [len(files) for files in classes.values()], decode())


def _read_classes(root: Path, split: str) -> dict[str, list[str]]:
    """Label -> file names, checked: 64 / 16 / 20 classes of equal size, no file twice."""
    content = split_csv(root, split)
    source = f"mini-imagenet's {split} csv file in {root / 'mini-imagenet'}"
    classes: dict[str, list[str]] = {}
    try:
        lines = io.StringIO(content.decode("utf-8-sig"), newline="")
        for row in csv.DictReader(lines):
            file = os.path.normpath(row["filename"])  # ./a.jpg is a.jpg
            classes.setdefault(row["label"], []).append(file)
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{source} has no columns filename,label ({error!r}); {REMEDY}") from error
    if len(classes) != CLASSES[split]:
        raise DataError(f"{source} has {len(classes)} classes, not {CLASSES[split]}; {REMEDY}")
    sizes = {label: len(files) for label, files in classes.items()}
    smallest = min(sizes, key=sizes.__getitem__)
    largest = max(sizes, key=sizes.__getitem__)
    if sizes[smallest] != sizes[largest]:
        raise DataError(
            f"{source}: class {smallest} has {sizes[smallest]} images, "
            f"class {largest} has {sizes[largest]}; {REMEDY}"
        )
    all_files = [file for files in classes.values() for file in files]
    repeated = len(all_files) - len(set(all_files))
    if repeated:
        raise DataError(f"{source} names {repeated} files more than once; {REMEDY}")
    return dict(sorted(classes.items()))
