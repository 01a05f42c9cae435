"""Figures of tasks, and of a network that adapts to them."""

from typing import TYPE_CHECKING

import matplotlib
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure as Canvas

from metanb.figures.style import DASHES, STYLE, Figure, finish_figure

if TYPE_CHECKING:
    from metanb.data.tasks import Tasks


def picture_tasks(tasks: "Tasks", name: str, caption: str) -> Figure:
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
        return finish_figure(canvas, name, caption, alt, data)


def picture_adaptation(data: pd.DataFrame, name: str, caption: str, ylabel: str) -> Figure:
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
        return finish_figure(
            canvas, name, caption, f"Line chart over inner SGD steps. {ends}.", data
        )
