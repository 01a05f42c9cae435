"""A data set of one's own, made by hand: a folder of small random images."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, classes: int = 3, per_class: int = 4, side: int = 28) -> Path:
    """Write grey images as `metanb.data.image_folders` reads them, with classes in each split."""
    rng = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        for number in range(classes):
            of_class = folder / split / f"{split}{number}"
            of_class.mkdir(parents=True)
            for image in range(per_class):
                pixels = rng.integers(256, size=(side, side), dtype=np.uint8)
                Image.fromarray(pixels).save(of_class / f"{image}.png")
    return folder


def change_an_image(folder: Path, split: str) -> Path:
    """Paint one image of a split black, and return its path."""
    path = folder / split / f"{split}0" / "0.png"
    Image.new("L", Image.open(path).size).save(path)
    return path
