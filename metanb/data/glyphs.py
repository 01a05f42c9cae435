"""Glyphs: an image set drawn from the fonts that matplotlib ships, for runs without a download.

A class is a character. An image is that character in one of 16 faces (DejaVu Sans, Sans Mono and
Serif, STIX General; four styles each), slightly turned, sheared, scaled, shifted and thickened. A
class has 20 images, as in Omniglot: each face that has the character once, in random order, then
from the first again with new jitter. Splits go by Unicode block, so meta-test classes come from
scripts that are not in meta-training. Classes are never rotated by quarter turns: in print, that
turns one letter into another (n, u).

Only the outlines are taken from the font files, unhinted and in font units, so FreeType's version
does not matter; matplotlib's Agg fills them. Sizes are normalised (a character's longer side is 20
pixels), so o and O look the same. Such look-alikes, and those of two scripts (Latin A, Greek Alpha,
Cyrillic A), are one class, the first in `BLOCKS`.
"""

import functools
import unicodedata
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from metanb.data.cache import DataError, Origin, Source
from metanb.labels import DATASETS

# Name, first and last code point, split. The first of two look-alikes stays.
BLOCKS: tuple[tuple[str, int, int, str], ...] = (
    ("Basic Latin", 0x0000, 0x007F, "train"),
    ("Greek and Coptic", 0x0370, 0x03FF, "train"),
    ("Lao", 0x0E80, 0x0EFF, "train"),
    ("Hebrew", 0x0590, 0x05FF, "valid"),
    ("Old Italic", 0x10300, 0x1032F, "valid"),
    ("Georgian", 0x10A0, 0x10FF, "test"),
)
FACES: tuple[str, ...] = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)  # the other fonts have their own encodings (cm*, STIXNonUni, STIXSiz*) or no letters (LastResort)
DESIGN = 2  # raise it whenever classes or images change: caches of another number are rendered anew
SIDE = DATASETS["glyphs"].side  # pixels
INK_SIDE = 20  # longer side of an unjittered character, pixels
PER_CLASS = 20
LOOK_ALIKE = 0.95  # two characters whose pixels have a cosine above this count as one
# matplotlib's path codes.
CURVE3 = 3  # control point or end of a parabola
CLOSEPOLY = 79  # end of a closed outline; its vertex has no meaning


class Faces:
    """The font files, and a 28x28 canvas.

    Raises:
        DataError: a font file is missing from the matplotlib installation.
    """

    def __init__(self) -> None:
        import matplotlib  # here and below, since a cached set does not need it
        from matplotlib.backends.backend_agg import RendererAgg
        from matplotlib.ft2font import FT2Font

        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        try:
            self.fonts = {face: FT2Font(str(folder / f"{face}.ttf")) for face in FACES}
        except OSError as error:
            raise DataError(
                f"glyphs: matplotlib lacks a font ({error}); install it again from a wheel"
            ) from error
        # Glyph 0 is the box that stands for a missing character.
        self._characters = {
            face: {code for code, glyph in font.get_charmap().items() if glyph}
            for face, font in self.fonts.items()
        }
        self._outlines: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
        self._canvas = RendererAgg(SIDE, SIDE, 72)  # at 72 dpi, a point is a pixel

    def faces_with(self, code: int) -> list[str]:
        """List the faces that have this code point in their character map, and an outline of it."""
        mapped = [face for face in FACES if code in self._characters[face]]
        return [face for face in mapped if len(self.outline(face, code)[0])]

    def outline(self, face: str, code: int) -> tuple[np.ndarray, np.ndarray]:
        """Vertices [V, 2], centred on 0 with the longer side 1, and path codes [V].

        V is 0 for a blank.
        """
        from matplotlib.ft2font import LoadFlags

        if (face, code) not in self._outlines:
            self.fonts[face].load_char(code, flags=LoadFlags.NO_SCALE)
            vertices, codes = self.fonts[face].get_path()
            extremes = _extreme_points(vertices, codes)
            side = np.ptp(extremes, axis=0).max() if len(extremes) else 0
            if side > 0:
                centre = (extremes.min(0) + extremes.max(0)) / 2
                self._outlines[face, code] = (vertices - centre) / side, codes
            else:
                self._outlines[face, code] = vertices[:0], codes[:0]
        return self._outlines[face, code]

    def draw(self, face: str, code: int, matrix: np.ndarray, pen: float = 0.0) -> np.ndarray:
        """Draw one image, uint8 [28, 28], ink 255 on 0.

        Args:
            face: of `FACES`.
            code: the code point.
            matrix: [2, 3], affine; maps the outline to pixels from the image's centre.
            pen: width of a line along the edge, pixels.
        """
        from matplotlib.path import Path as Outline
        from matplotlib.transforms import Affine2D

        vertices, codes = self.outline(face, code)
        white = (1.0, 1.0, 1.0, 1.0)
        self._canvas.clear()
        context = self._canvas.new_gc()
        context.set_linewidth(pen)
        context.set_foreground(white, isRGBA=True)
        # Snapping would move upright strokes, and no others, to whole pixels.
        context.set_snap(False)
        placed = vertices @ matrix[:, :2].T + matrix[:, 2] + SIDE / 2
        self._canvas.draw_path(context, Outline(placed, codes), Affine2D(), white)
        return np.array(np.asarray(self._canvas.buffer_rgba())[..., 3])

    def draw_plain(self, face: str, code: int) -> np.ndarray:
        """Draw the character without jitter, for comparison with others: uint8 [28, 28]."""
        return self.draw(face, code, np.array([[INK_SIDE, 0.0, 0.0], [0.0, INK_SIDE, 0.0]]))


def _extreme_points(vertices: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Points [points, 2] that span the outline's bounding box.

    Parabolas count with their extreme points, since control points may lie outside the box.
    """
    control = np.flatnonzero(codes == CURVE3)[::2]
    start = vertices[control - 1]
    middle = vertices[control]
    end = vertices[control + 1]
    # The derivative of the parabola is 0 at t, by coordinate.
    bend = start - 2 * middle + end
    t = np.clip(np.divide(start - middle, bend, out=np.zeros_like(bend), where=bend != 0), 0, 1)
    tips = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end
    corners = vertices[(codes != CURVE3) & (codes != CLOSEPOLY)]
    return np.concatenate([corners, end, tips])


@functools.cache
def choose_characters() -> dict[int, str]:
    """Choose the classes: code point -> split.

    No two classes look alike in any face that has both, whether of one split or of two.
    """
    faces = Faces()
    # Candidates: the characters that at least two faces have. DejaVu Sans is one of them, so that
    # any two candidates can be compared. Each face's rows are numbers of candidates.
    split_of: dict[int, str] = {}
    rows_of: dict[str, list[int]] = {face: [] for face in FACES}
    for _, first, last, split in BLOCKS:
        for code in range(first, last + 1):
            if unicodedata.category(chr(code))[0] not in "LN":  # Unicode's letters and numbers
                continue
            having = faces.faces_with(code)
            if "DejaVuSans" in having and len(having) > 1:
                for face in having:
                    rows_of[face].append(len(split_of))
                split_of[code] = split
    codes = list(split_of)
    # Compare all pairs of candidates in each face.
    alike = np.zeros((len(codes), len(codes)), dtype=bool)
    for face, rows in rows_of.items():
        images = np.stack([faces.draw_plain(face, codes[row]) for row in rows])
        pixels = images.reshape(len(rows), -1).astype(np.float64)
        # Sums of whole numbers below 2^53 are exact in float64, so every machine chooses the same
        # classes, whatever its BLAS.
        gram = pixels @ pixels.T
        norms = np.sqrt(np.diag(gram))
        alike[np.ix_(rows, rows)] |= gram > np.outer(LOOK_ALIKE * norms, norms)
    # Keep the first of each group of look-alikes.
    kept: list[int] = []
    for row in range(len(codes)):
        if not alike[row, kept].any():
            kept.append(row)
    return {codes[row]: split_of[codes[row]] for row in kept}


def glyph_images(faces: Faces, code: int, seed: int) -> np.ndarray:
    """Draw the images of one class, uint8 [20, 1, 28, 28].

    They depend on code point and seed, not on other classes.
    """
    rng = np.random.default_rng([seed, code])
    having = faces.faces_with(code)
    # Every face comes once before any comes again.
    order = np.argsort(rng.random(len(having)))
    images = np.empty((PER_CLASS, *DATASETS["glyphs"].shape), dtype=np.uint8)
    # Seven numbers in [-1, 1) per image: turn, shear, two scales, two shifts, thickness.
    for i, jitter in enumerate(rng.random((PER_CLASS, 7)) * 2 - 1):
        turn = np.deg2rad(8.0) * jitter[0]
        shear = np.array([[1.0, 0.12 * jitter[1]], [0.0, 1.0]])
        scales = np.diag(INK_SIDE * (0.9 + 0.1 * jitter[2:4]))
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        matrix = np.column_stack([rotation @ (shear @ scales), 1.5 * jitter[4:6]])
        face = having[order[i % len(having)]]
        images[i, 0] = faces.draw(face, code, matrix, pen=0.4 * (1 + jitter[6]))
    return images


def origin(root: Path, split: str, seed: int) -> Origin:
    """What a split is made from: the fonts, by the seed."""
    stamp = f"design {DESIGN}, matplotlib {version('matplotlib')}"
    return Origin(f"glyphs-{seed}-{split}", stamp, partial(glyph_source, split, seed))


def glyph_source(split: str, seed: int) -> Source:
    """Names of a split's classes ("U+0041 A"), and the images of one class after the other."""
    faces = Faces()
    codes = [code for code, of_split in choose_characters().items() if of_split == split]
    names = [f"U+{code:04X} {chr(code)}" for code in codes]
    blocks = (glyph_images(faces, code, seed) for code in codes)
    return Source(names, [PER_CLASS] * len(names), blocks)
