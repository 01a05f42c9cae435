"""Image files as pixels: upright, opaque, in 8 bits, of the side and the channels asked for."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from metanb.data.cache import DataError
from metanb.labels import ImageKind

# Tags of TIFF files, and values of two of them.
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
WHITE_IS_ZERO = 0
SIGNED = 2


def read_pixels(path: Path, kind: ImageKind, original_side: int | None = None) -> np.ndarray:
    """Read one image file, uint8 [C, H, W] of the kind's shape, resized by Lanczos if need be.

    Args:
        path: the file.
        kind: gives channels and side.
        original_side: the height and width, pixels, that the file must have; None: any.

    Raises:
        DataError: the file is unreadable, or not of `original_side`.
    """
    image, original_size = open_image(path, "RGB" if kind.channels == 3 else "L")
    if image.size != (kind.side, kind.side):
        image = image.resize((kind.side, kind.side), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    if original_side is not None and original_size != (original_side, original_side):
        width, height = original_size
        raise DataError(
            f"{path} is {width}x{height}, not {original_side}x{original_side}; "
            "put the original there"
        )
    return np.moveaxis(np.atleast_3d(pixels), -1, 0)


def open_image(path: Path, mode: str) -> tuple[Image.Image, tuple[int, int]]:
    """Read an image file, upright, opaque, in mode "L" or "RGB"; and the file's width and height.

    A file that says how the camera was held is turned; 16 bits become 8; what is transparent
    becomes white.

    Raises:
        DataError: the file is unreadable, too large to be true, animated, or of a mode that has no
            fixed range (32 bits per pixel); or a TIFF file whose numbers Pillow would misread.
    """
    with opened_image(path) as file:
        if getattr(file, "is_animated", False) and file.format != "MPO":
            raise ValueError("it is animated")
        _require_plain_numbers(file)
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I;16") or (image.mode == "I" and file.format == "PNG"):
            image = _to_8_bits(image)
        elif image.mode in ("I", "F"):
            raise ValueError(f"mode {image.mode}, whose range is not known")
        if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        # Convert before any resizing: Pillow resizes images of mode "1" by nearest neighbour,
        # whatever filter is given.
        return image.convert(mode), file.size


def _to_8_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 bits per pixel in 8; the grey that stands for transparent stays so."""
    exact = np.asarray(image).astype(np.float64)
    grey = Image.fromarray(np.round(exact / 257).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is not None:
        opaque = np.where(exact == transparent, 0, 255).astype(np.uint8)
        grey.putalpha(Image.fromarray(opaque))
    return grey


def _require_plain_numbers(file: Image.Image) -> None:
    """Raise ValueError for a TIFF file whose numbers mean other greys than Pillow reads."""
    if file.format != "TIFF":
        return
    tags = file.tag_v2  # type: ignore[attr-defined]
    bits = max(tags.get(BITS_PER_SAMPLE, (1,)))
    if bits > 8 and bits != 16:
        raise ValueError(f"{bits} bits per sample, which are not 8 or 16")
    if bits == 16 and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        raise ValueError("16 bits per sample whose 0 is white")
    if SIGNED in tags.get(SAMPLE_FORMAT, ()):
        raise ValueError("signed samples, whose black is not known")


@contextmanager
def opened_image(path: Path) -> Iterator[Image.Image]:
    """Open an image file; inside, only its header is read until the pixels are asked for.

    Raises:
        DataError: an error of Pillow's inside; the message names the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                yield file
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"unreadable image {path} ({error}); put a smaller one there") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"unreadable image {path} ({error}); put a whole copy there") from error
