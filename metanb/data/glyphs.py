"""Glyphs: an image set drawn from the fonts that matplotlib ships, for runs that need no download.

A class is a character, an image is that character in one of 16 faces (DejaVu Sans, Sans Mono and
Serif, STIX General; four styles each), a little turned, sheared, scaled, shifted and thickened. A
class has 20 images, as in Omniglot: each face that has the character once, in random order, then
from the first again, jittered anew. Splits go by Unicode block, so meta-test classes come from
scripts never trained on. Classes are never rotated by quarter turns: in print, that makes one
letter of another (n, u).

Only the outlines are taken from the font files, unhinted and in font units, so FreeType's version
does not matter; matplotlib's Agg fills them. Sizes are normalised (a character's longer side is 20
pixels), so o and O look the same; such look-alikes, and those of two scripts (Latin A, Greek Alpha,
Cyrillic A), are one class, the first in `BLOCKS`.
"""

import functools
import unicodedata
from pathlib import Path

import numpy as np

from metanb.data.cache import DataError, Source

# Name, first and last code point, split, part of the default set. The order decides which of two
# look-alikes stays, so the default set comes first: it is a subset of the full one.
BLOCKS: tuple[tuple[str, int, int, str, bool], ...] = (
    ("Basic Latin", 0x0000, 0x007F, "train", True),
    ("Greek and Coptic", 0x0370, 0x03FF, "train", True),
    ("Lao", 0x0E80, 0x0EFF, "train", True),
    ("Hebrew", 0x0590, 0x05FF, "valid", True),
    ("Old Italic", 0x10300, 0x1032F, "valid", True),
    ("Georgian", 0x10A0, 0x10FF, "test", True),
    ("Latin-1 Supplement", 0x0080, 0x00FF, "train", False),
    ("Latin Extended-A", 0x0100, 0x017F, "train", False),
    ("Latin Extended-B", 0x0180, 0x024F, "train", False),
    ("IPA Extensions", 0x0250, 0x02AF, "train", False),
    ("Cyrillic", 0x0400, 0x04FF, "train", False),
    ("Cyrillic Supplement", 0x0500, 0x052F, "train", False),
    ("Armenian", 0x0530, 0x058F, "valid", False),
    ("Arabic", 0x0600, 0x06FF, "test", False),
    ("NKo", 0x07C0, 0x07FF, "test", False),
    ("Unified Canadian Aboriginal Syllabics", 0x1400, 0x167F, "test", False),
    ("Ogham", 0x1680, 0x169F, "valid", False),
    ("Phonetic Extensions", 0x1D00, 0x1D7F, "train", False),
    ("Phonetic Extensions Supplement", 0x1D80, 0x1DBF, "train", False),
    ("Latin Extended Additional", 0x1E00, 0x1EFF, "train", False),
    ("Greek Extended", 0x1F00, 0x1FFF, "train", False),
    ("Letterlike Symbols", 0x2100, 0x214F, "train", False),
    ("Number Forms", 0x2150, 0x218F, "train", False),
    ("Arrows", 0x2190, 0x21FF, "test", False),
    ("Mathematical Operators", 0x2200, 0x22FF, "train", False),
    ("Miscellaneous Technical", 0x2300, 0x23FF, "train", False),
    ("Geometric Shapes", 0x25A0, 0x25FF, "valid", False),
    ("Miscellaneous Symbols", 0x2600, 0x26FF, "test", False),
    ("Dingbats", 0x2700, 0x27BF, "valid", False),
    ("Latin Extended-C", 0x2C60, 0x2C7F, "train", False),
    ("Georgian Supplement", 0x2D00, 0x2D2F, "test", False),
    ("Tifinagh", 0x2D30, 0x2D7F, "valid", False),
    ("Lisu", 0xA4D0, 0xA4FF, "valid", False),
    ("Cyrillic Extended-B", 0xA640, 0xA69F, "train", False),
    ("Latin Extended-D", 0xA720, 0xA7FF, "train", False),
    ("Alphabetic Presentation Forms", 0xFB00, 0xFB4F, "valid", False),
    ("Arabic Presentation Forms-A", 0xFB50, 0xFDFF, "test", False),
    ("Arabic Presentation Forms-B", 0xFE70, 0xFEFF, "test", False),
)
SYMBOL_BLOCKS = (  # elsewhere only letters and numbers are classes
    "Arrows",
    "Mathematical Operators",
    "Miscellaneous Technical",
    "Geometric Shapes",
    "Miscellaneous Symbols",
    "Dingbats",
)
FACES: tuple[str, ...] = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    # matplotlib's other fonts have encodings of their own (cm*, STIXNonUni, STIXSiz*) or no letters
    # (LastResort)
)
# raise it whenever the classes or their images change: caches of another number are rendered anew
DESIGN = 2
SIDE = 28  # pixels
INK_SIDE = 20  # longer side of an unjittered character, pixels
PER_CLASS = 20
LOOK_ALIKE = 0.95  # cosine between two characters' pixels from which they count as one
# matplotlib's path codes: a parabola's control point or end; a closing, its vertex void
CURVE3, CLOSEPOLY = 3, 79


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
        self._cmaps = {  # glyph 0 is the box that stands for a missing character
            face: {code for code, glyph in font.get_charmap().items() if glyph}
            for face, font in self.fonts.items()
        }
        self._outlines: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
        self._canvas = RendererAgg(SIDE, SIDE, 72)  # at 72 dpi, a point is a pixel

    def having(self, code: int) -> list[str]:
        """The faces that have this code point: in the character map, and with an outline to draw."""
        return [
            face for face in FACES if code in self._cmaps[face] and len(self.outline(face, code)[0])
        ]

    def outline(self, face: str, code: int) -> tuple[np.ndarray, np.ndarray]:
        """Vertices [V, 2], centred on 0 with the longer side 1, and path codes [V]; V is 0 for a blank."""
        from matplotlib.ft2font import LoadFlags

        if (face, code) not in self._outlines:
            self.fonts[face].load_char(code, flags=LoadFlags.NO_SCALE)
            vertices, codes = self.fonts[face].get_path()
            drawn = _extremes(vertices, codes)
            if len(drawn) and (side := np.ptp(drawn, axis=0).max()) > 0:
                self._outlines[face, code] = (
                    (vertices - (drawn.min(0) + drawn.max(0)) / 2) / side,
                    codes,
                )
            else:
                self._outlines[face, code] = vertices[:0], codes[:0]
        return self._outlines[face, code]

    def draw(self, face: str, code: int, matrix: np.ndarray, pen: float = 0.0) -> np.ndarray:
        """One image, uint8 [28, 28], ink 255 on 0: the outline through a 2x3 affine matrix, edged by `pen` pixels."""
        from matplotlib.path import Path as Outline
        from matplotlib.transforms import Affine2D

        vertices, codes = self.outline(face, code)
        self._canvas.clear()
        gc = self._canvas.new_gc()
        gc.set_linewidth(pen)
        gc.set_foreground((1.0, 1.0, 1.0, 1.0), isRGBA=True)
        gc.set_snap(False)  # else upright strokes, and only they, would jump to whole pixels
        placed = vertices @ matrix[:, :2].T + matrix[:, 2] + SIDE / 2
        self._canvas.draw_path(gc, Outline(placed, codes), Affine2D(), (1.0, 1.0, 1.0, 1.0))
        return np.array(np.asarray(self._canvas.buffer_rgba())[..., 3])

    def plain(self, face: str, code: int) -> np.ndarray:
        """The character without jitter: what look-alikes are told by."""
        return self.draw(face, code, np.array([[INK_SIDE, 0.0, 0.0], [0.0, INK_SIDE, 0.0]]))


def _extremes(vertices: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Points, [points, 2], that span the outline's box: parabolas' tips, since control points may lie outside it."""
    control = np.flatnonzero(codes == CURVE3)[::2]
    start, middle, end = vertices[control - 1], vertices[control], vertices[control + 1]
    bend = start - 2 * middle + end
    t = np.clip(np.divide(start - middle, bend, out=np.zeros_like(bend), where=bend != 0), 0, 1)
    tips = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end
    return np.concatenate([vertices[(codes != CURVE3) & (codes != CLOSEPOLY)], end, tips])


@functools.cache
def choose_characters(everything: bool) -> dict[int, str]:
    """The classes: code point -> split. No two look alike, in any face that has both, be they of one split or of two.

    With `everything`, they come from all of `BLOCKS` (2,566 classes with matplotlib 3.11), else its
    default part (312).
    """
    faces = Faces()
    split_of: dict[int, str] = {}
    members: dict[str, list[int]] = {face: [] for face in FACES}
    for name, first, last, split, default in BLOCKS:
        # Unicode's general categories: letters, numbers, symbols
        wanted = "LNS" if name in SYMBOL_BLOCKS else "LN"
        for code in range(first, last + 1) if everything or default else ():
            having = faces.having(code) if unicodedata.category(chr(code))[0] in wanted else []
            # Two faces at least; DejaVu Sans among them, so that any two characters can be
            # compared.
            if "DejaVuSans" in having and len(having) > 1:
                for face in having:
                    members[face].append(len(split_of))
                split_of[code] = split
    codes = list(split_of)
    alike = np.zeros((len(codes), len(codes)), dtype=bool)
    for face, rows in members.items():
        pixels = (
            np.stack([faces.plain(face, codes[i]) for i in rows])
            .reshape(len(rows), -1)
            .astype(np.float64)
        )
        # Sums of whole numbers below 2^53 are exact in float64: the same classes on every machine,
        # whatever its BLAS.
        gram = pixels @ pixels.T
        norms = np.sqrt(np.diag(gram))
        alike[np.ix_(rows, rows)] |= gram > np.outer(LOOK_ALIKE * norms, norms)
    kept: list[int] = []
    for i in range(len(codes)):
        if not alike[i, kept].any():
            kept.append(i)
    return {codes[i]: split_of[codes[i]] for i in kept}


def glyph_images(faces: Faces, code: int, seed: int) -> np.ndarray:
    """The images of one class, uint8 [20, 1, 28, 28]; they depend on code point and seed, not on other classes."""
    rng = np.random.default_rng([seed, code])
    having = faces.having(code)
    order = np.argsort(rng.random(len(having)))  # every face before any comes again
    out = np.empty((PER_CLASS, 1, SIDE, SIDE), dtype=np.uint8)
    for i, draw in enumerate(rng.random((PER_CLASS, 7)) * 2 - 1):  # seven numbers in [-1, 1)
        turn, shear = np.deg2rad(8.0) * draw[0], 0.12 * draw[1]
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        shape = np.array([[1.0, shear], [0.0, 1.0]]) @ np.diag(INK_SIDE * (0.9 + 0.1 * draw[2:4]))
        matrix = np.column_stack([rotation @ shape, 1.5 * draw[4:6]])
        out[i, 0] = faces.draw(
            having[order[i % len(having)]], code, matrix, pen=0.4 * (1 + draw[6])
        )
    return out


def glyph_source(everything: bool, split: str, seed: int) -> Source:
    """Names of a split's classes ("U+0041 A"), and their images [20, 1, 28, 28] one class after the other."""
    faces = Faces()
    codes = [code for code, where in choose_characters(everything).items() if where == split]
    return [f"U+{code:04X} {chr(code)}" for code in codes], (
        glyph_images(faces, code, seed) for code in codes
    )
