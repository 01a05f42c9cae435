"""The style of all figures, and a figure that carries its caption, its alt text and its data."""

import base64
import io
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure as Canvas

from metanb import files
from metanb.figures.svg import inline, standalone

STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.facecolor": "none",  # the page's own background: light or dark
    "axes.facecolor": "none",
    "savefig.bbox": "tight",
}
WIDE = 600  # pixels: wider figures scroll on a phone
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))  # algorithms stay apart in grey


@dataclass(frozen=True)
class Figure:
    """A drawn figure.

    Attributes:
        name: of the data file.
        svg: an `<svg>` element.
        caption: what to see.
        alt: what the figure shows, in words.
        data: what is drawn.
        canvas: matplotlib's figure.
    """

    name: str
    svg: str
    caption: str
    alt: str
    data: pd.DataFrame
    canvas: Canvas = field(repr=False, compare=False)

    def save(self, path: Path | str) -> Path:
        """Save the figure, black on white, or its data; the ending says how.

        Args:
            path: the file: .svg, .png (200 dots per inch), .pdf, or .csv for the data.

        Returns:
            The path.

        Raises:
            ValueError: another ending.
            metanb.files.DiskError: the file cannot be written.

        Example:
            >>> from tempfile import TemporaryDirectory
            >>> import pandas as pd
            >>> figure = finish_figure(Canvas(), "empty", "Nothing.", "Nothing.", pd.DataFrame())
            >>> with TemporaryDirectory() as folder:
            ...     print(figure.save(f"{folder}/empty.pdf").name)
            empty.pdf
        """
        path = Path(path)
        kind = path.suffix.lower().removeprefix(".")
        if kind == "csv":
            content = self._csv
        elif kind == "svg":
            content = standalone(self.svg).encode()
        elif kind in ("png", "pdf"):
            file = io.BytesIO()
            # Without a date, so that the same drawing gives the same bytes.
            metadata = {"CreationDate": None} if kind == "pdf" else {}
            with matplotlib.rc_context(STYLE):
                self.canvas.savefig(
                    file, format=kind, dpi=200, facecolor="white", metadata=metadata
                )
            content = file.getvalue()
        else:
            raise ValueError(f"{path}: name a file that ends in .svg, .png, .pdf or .csv")
        files.replace(path, content)
        return path

    @property
    def _csv(self) -> bytes:
        return self.data.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()

    def __repr__(self) -> str:
        """The words, where pictures cannot be shown."""
        return f"Figure {self.name}: {self.caption}"

    def _repr_html_(self) -> str:
        """The figure as one self-contained piece of HTML: its link to the data holds the data."""
        address = f"data:text/csv;base64,{base64.b64encode(self._csv).decode()}"
        link = f'<a download="{self.name}.csv" href="{address}">Data (csv)</a>'
        caption = f"<figcaption>{escape(self.caption)} {link}</figcaption>"
        width = float(self.svg.partition(' width="')[2].partition('"')[0])
        wide = " wide" if width > WIDE else ""
        return f'<figure class="metanb-figure{wide}">{self.svg}{caption}</figure>'


def finish_figure(canvas: Canvas, name: str, caption: str, alt: str, data: pd.DataFrame) -> Figure:
    """Make a figure of a canvas; the same drawing gives the same bytes."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):  # figures of one page share no ids
        canvas.savefig(file, format="svg", metadata={"Date": None})
    return Figure(name, inline(file.getvalue(), alt), caption, alt, data, canvas)


def make_panels(n: int) -> tuple[Canvas, list[Any]]:
    """Make a canvas with n panels, two per row."""
    columns = min(2, n)
    rows = -(-n // 2)
    canvas = Canvas(figsize=(4.4 * columns, 3.1 * rows), layout="constrained")
    canvas.get_layout_engine().set(h_pad=0.12)  # a panel's title stays clear of the labels above it
    axes = canvas.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[n:]:
        axis.set_visible(False)
    return canvas, list(axes[:n])


def colours_and_dashes(n: int) -> list[tuple[Any, Any]]:
    """Colours and dashes of n lines that stay apart, in grey too."""
    colours = sns.color_palette("colorblind", n)
    return [(colour, DASHES[i % len(DASHES)]) for i, colour in enumerate(colours)]
