"""Drawing: one style, and a figure that carries its caption, its alt text and its data wherever it is shown."""

import base64
import io
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import matplotlib
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure as Canvas

from metanb.figures.svg import inline

if TYPE_CHECKING:
    from metanb.data.tasks import Tasks


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
WIDE = 600  # pixels: figures of more scroll on a phone
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))  # algorithms stay apart in grey


@dataclass(frozen=True)
class Figure:
    """A drawn figure: an `<svg>`, a caption that says what to see, alt text that says what is there, and the data."""

    name: str
    svg: str
    caption: str
    alt: str
    data: pd.DataFrame

    def __repr__(self) -> str:
        """The words, where pictures cannot be shown."""
        return f"Figure {self.name}: {self.caption}"

    def _repr_html_(self) -> str:
        """The figure as one self-contained piece of HTML: nothing is fetched, the data link holds the data."""
        csv = self.data.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()
        link = f'<a download="{self.name}.csv" href="data:text/csv;base64,{base64.b64encode(csv).decode()}">Data (csv)</a>'
        caption = f"<figcaption>{escape(self.caption)} {link}</figcaption>"
        wide = " wide" if float(self.svg.partition(' width="')[2].partition('"')[0]) > WIDE else ""
        return f'<figure class="metanb-figure{wide}">{self.svg}{caption}</figure>'


def finish(canvas: Canvas, name: str, caption: str, alt: str, data: pd.DataFrame) -> Figure:
    """The canvas as a figure; the same drawing gives the same bytes."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):  # figures of one page share no ids
        canvas.savefig(file, format="svg", metadata={"Date": None})
    return Figure(name, inline(file.getvalue(), alt), caption, alt, data)


def panels(n: int) -> tuple[Canvas, list[Any]]:
    """A canvas with n panels, two a row."""
    columns, rows = min(2, n), -(-n // 2)
    canvas = Canvas(figsize=(4.4 * columns, 3.1 * rows), layout="constrained")
    canvas.get_layout_engine().set(h_pad=0.12)  # a panel's title stays clear of the labels above it
    axes = canvas.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[n:]:
        axis.set_visible(False)
    return canvas, list(axes[:n])


def looks(n: int) -> list[tuple[Any, Any]]:
    """Colours and dashes, n of them, that stay apart, in grey too."""
    return [
        (colour, DASHES[i % len(DASHES)])
        for i, colour in enumerate(sns.color_palette("colorblind", n))
    ]


def tasks_picture(tasks: "Tasks", name: str, caption: str) -> Figure:
    """Tasks as pictures: a row a task, support images left of the bar, query images right, a column a class.

    Shows the first image of each class and role. The data have a row a picture: its bytes (0 to
    255) in hexadecimal.
    """
    ways = int(tasks.support_y.max()) + 1
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(1.1 * ways, 0.62 * len(tasks) + 0.4), layout="constrained")
        axes = canvas.subplots(len(tasks), 2 * ways, squeeze=False)
        rows = []
        for task, row in enumerate(axes):
            for column, axis in enumerate(row):
                role = "support" if column < ways else "query"
                x, y = getattr(tasks, f"{role}_x")[task], getattr(tasks, f"{role}_y")[task]
                image = x[y == column % ways][0].permute(1, 2, 0).squeeze(-1).numpy()
                axis.imshow(image, cmap="gray_r", vmin=0, vmax=1)
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set(visible=True, alpha=0.2)
                rows.append(
                    (
                        task,
                        role,
                        column % ways,
                        (image * 255).round().astype("uint8").tobytes().hex(),
                    )
                )
                if task == 0:
                    axis.set_title(f"{role} {column % ways}", fontsize=6)
            row[0].set_ylabel(f"task {task}", fontsize=7)
        data = pd.DataFrame(rows, columns=["task", "role", "label", "pixels"])
        alt = f"{len(tasks)} rows of pictures: {ways} support classes, then new query images of the same classes."
        return finish(canvas, name, caption, alt, data)


def steps(data: pd.DataFrame, name: str, caption: str, ylabel: str) -> Figure:
    """Adaptation watched: `data` has a column step and one column a line; drawn over the inner steps."""
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(5.2, 3.1), layout="constrained")
        axis = canvas.subplots()
        lines = [column for column in data.columns if column != "step"]
        for column, colour, dash in zip(
            lines, sns.color_palette("colorblind"), DASHES * 2, strict=False
        ):
            axis.plot(
                data.step, data[column], color=colour, linestyle=dash, marker="o", label=column
            )
        axis.set(xlabel="inner SGD step", ylabel=ylabel, xticks=data.step)
        axis.legend(frameon=False)
        ends = "; ".join(
            f"{c}: from {data[c].iloc[0]:.3g} to {data[c].iloc[-1]:.3g}" for c in lines
        )
        return finish(canvas, name, caption, f"Line chart over inner SGD steps. {ends}.", data)
