"""The style of all figures, and a figure that carries its caption, its alt text and its data."""

import base64
import io
import textwrap
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure as Canvas
from matplotlib.transforms import Bbox

from metanb import files
from metanb.figures.svg import inline, join, size_of, standalone

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
WIDE = 600  # pixels: a drawing that is wider, and has no panels, scrolls on a phone
NARROW = "36rem"  # a page that is narrower shows panels below each other
GAP = 8  # pixels between panels
PADDING = 0.05  # inches around a panel and around a legend
LEGEND_ROW = 0.25  # inches
LEGEND_WIDTH = 54  # characters of a legend's row, a handle counts as HANDLE: fits a phone
HANDLE = 7
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
        panels: the same panel by panel, one `<svg>` each, for a page that sets them side by side
            or below each other; empty where the drawing is one.
        legend: the panels' legend, as one more `<svg>`, if there is one.
    """

    name: str
    svg: str
    caption: str
    alt: str
    data: pd.DataFrame
    canvas: Canvas = field(repr=False, compare=False)
    panels: tuple[str, ...] = ()
    legend: str = ""

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
        link = link_to_data(self.name, self._csv)
        caption = f"<figcaption>{escape(self.caption)} {link}</figcaption>"
        if self.panels:
            return f'<figure class="metanb-figure">{self._panels_html}{caption}</figure>'
        wide = " wide" if size_of(self.svg)[0] > WIDE else ""
        return f'<figure class="metanb-figure{wide}">{self.svg}{caption}</figure>'

    @property
    def _panels_html(self) -> str:
        """The panels as a grid: two or three columns, and one on a phone."""
        columns = count_columns(len(self.panels))
        # All columns side by side where the page is NARROW or wider, each a share of it that leaves
        # no room for one more; on a narrower page each takes the whole width.
        share = f"max({90 // columns}%, ({NARROW} - 100%) * 999)"
        widest = columns * size_of(self.panels[0])[0] + (columns - 1) * GAP
        grid = (
            f"display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, {share}), "
            f"1fr)); gap: {GAP}px; max-width: {widest:g}px"
        )
        return (
            f'<div role="img" aria-label="{escape(self.alt)}">{self.legend}'
            f'<div style="{grid}">{"".join(self.panels)}</div></div>'
        )


def link_to_data(name: str, csv: bytes) -> str:
    """A link that holds the data itself, and saves it as a file of that name."""
    address = f"data:text/csv;base64,{base64.b64encode(csv).decode()}"
    return f'<a download="{name}.csv" href="{address}">Data (csv)</a>'


def finish_figure(canvas: Canvas, name: str, caption: str, alt: str, data: pd.DataFrame) -> Figure:
    """Make a figure of a canvas that is one drawing; the same drawing gives the same bytes."""
    svg = inline(_draw_svg(canvas, name, "tight"), alt)
    return Figure(name, svg, caption, alt, data, canvas)


def finish_panels(canvas: Canvas, name: str, caption: str, alt: str, data: pd.DataFrame) -> Figure:
    """Make a figure of a canvas of `make_panels`, panel by panel.

    All panels get the same size, with their axes in the same place of it, so that they line up
    side by side and below each other.
    """
    if len(canvas.axes) == 1:
        return finish_figure(canvas, name, caption, alt, data)

    # the layout stays what it is when parts of it are hidden
    canvas.draw_without_rendering()
    canvas.set_layout_engine("none")

    # how far panels reach beyond their axes, at most: left, bottom, right, top
    inner = [axis.get_window_extent().extents / canvas.dpi for axis in canvas.axes]
    outer = [axis.get_tightbbox().extents / canvas.dpi for axis in canvas.axes]
    reach = np.subtract(outer, inner)
    reach = np.r_[reach[:, :2].min(axis=0) - PADDING, reach[:, 2:].max(axis=0) + PADDING]

    # each part is drawn while all others are hidden
    parts = [
        *(
            (legend, legend.get_window_extent().padded(4).extents / canvas.dpi)
            for legend in canvas.legends
        ),
        *zip(canvas.axes, inner + reach, strict=True),
    ]
    for part, _ in parts:
        part.set_visible(False)
    svgs = []
    for number, (part, extents) in enumerate(parts):
        part.set_visible(True)
        svgs.append(inline(_draw_svg(canvas, f"{name}-{number}", Bbox.from_extents(extents)), ""))
        part.set_visible(False)
    for part, _ in parts:
        part.set_visible(True)

    legends, panels = svgs[: len(canvas.legends)], svgs[len(canvas.legends) :]
    columns = count_columns(len(panels))
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    svg = join([legends, *rows], alt)
    return Figure(name, svg, caption, alt, data, canvas, tuple(panels), "".join(legends))


def _draw_svg(canvas: Canvas, salt: str, box: Any) -> str:
    """Matplotlib's SVG of a canvas, or of a box of it; ids differ by salt."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):  # figures of one page share no ids
        canvas.savefig(file, format="svg", metadata={"Date": None}, bbox_inches=box)
    return file.getvalue()


def count_columns(n: int) -> int:
    """The columns of n panels: two, or three where that leaves no hole; one panel stands alone."""
    return 3 if n % 3 == 0 else min(2, n)


def make_panels(n: int) -> tuple[Canvas, list[Any]]:
    """Make a canvas with n panels, in rows of two or three; `finish_panels` makes its figure."""
    columns = count_columns(n)
    rows = -(-n // columns)
    width, height = (2.8, 2.6) if columns == 3 else (4.4, 3.1)
    canvas = Canvas(figsize=(width * columns, height * rows), layout="constrained")
    canvas.get_layout_engine().set(h_pad=0.12)  # a panel's title stays clear of the labels above it
    axes = canvas.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[n:]:
        axis.remove()
    return canvas, list(axes[:n])


def set_title(axis: Any, title: str) -> None:
    """Give a panel its title, in lines as long as the panel is wide."""
    inches = axis.figure.get_figwidth() / axis.get_gridspec().ncols
    axis.set_title(textwrap.fill(title, int(10 * inches)), fontsize=10)


def add_legend(canvas: Canvas, *axes: Any) -> None:
    """Put a legend of what the axes draw above all panels, clear of the lines, phone-wide."""
    drawn = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    handles, labels = list(drawn.values()), list(drawn)
    lengths = [len(label) + HANDLE for label in labels]
    columns = len(labels)
    if sum(lengths) > LEGEND_WIDTH:
        columns = max(1, LEGEND_WIDTH // max(lengths))
    width, height = canvas.get_size_inches()
    canvas.set_size_inches(width, height + LEGEND_ROW * -(-len(labels) // columns))
    canvas.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False)


def colours_and_dashes(n: int) -> list[tuple[Any, Any]]:
    """Colours and dashes of n lines that stay apart, in grey too."""
    colours = sns.color_palette("colorblind", n)
    return [(colour, DASHES[i % len(DASHES)]) for i, colour in enumerate(colours)]
