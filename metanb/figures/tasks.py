"""Figures of tasks, and of a network that adapts to them."""

from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure as Canvas

from metanb.figures.style import DASHES, STYLE, Figure, finish_figure

if TYPE_CHECKING:
    from metanb.data.tasks import Tasks


def picture_tasks(tasks: "Tasks", name: str, caption: str) -> Figure:
    """Tasks as pictures: one row per task, support images left, query images right.

    A column is a class; it shows the class's first image of that role. The data have one row per
    picture: its bytes (0 to 255) in hexadecimal.
    """
    ways = int(tasks.support_y.max()) + 1
    columns = [(role, label) for role in ("support", "query") for label in range(ways)]
    rows = []
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(1.1 * ways, 0.62 * len(tasks) + 0.4), layout="constrained")
        axes = canvas.subplots(len(tasks), 2 * ways, squeeze=False)
        for task, row in enumerate(axes):
            for (role, label), axis in zip(columns, row, strict=True):
                image = _first_image(tasks, task, role, label)
                axis.imshow(image, cmap="gray_r", vmin=0, vmax=1)
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set(visible=True, alpha=0.2)
                if task == 0:
                    axis.set_title(f"{role} {label}", fontsize=6)
                pixels = (image * 255).round().astype("uint8").tobytes().hex()
                rows.append((task, role, label, pixels))
            row[0].set_ylabel(f"task {task}", fontsize=7)
        data = pd.DataFrame(rows, columns=["task", "role", "label", "pixels"])
        alt = (
            f"{len(tasks)} rows of pictures: {ways} support classes, "
            "then new query images of the same classes."
        )
        return finish_figure(canvas, name, caption, alt, data)


def _first_image(tasks: "Tasks", task: int, role: str, label: int) -> np.ndarray:
    """A class's first image of one task and role, [height, width] or [height, width, channels]."""
    images = getattr(tasks, f"{role}_x")[task]
    labels = getattr(tasks, f"{role}_y")[task]
    return images[labels == label][0].permute(1, 2, 0).squeeze(-1).numpy()


def picture_adaptation(data: pd.DataFrame, name: str, caption: str, ylabel: str) -> Figure:
    """Lines over the inner steps: `data` has a column `step` and one column per line."""
    names = [column for column in data.columns if column != "step"]
    colours = sns.color_palette("colorblind")
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(5.2, 3.4), layout="constrained")
        axis = canvas.subplots()
        for line, colour, dash in zip(names, colours, DASHES * 2, strict=False):
            axis.plot(data.step, data[line], color=colour, linestyle=dash, marker="o", label=line)
        axis.set(xlabel="inner SGD step", ylabel=ylabel, xticks=data.step)
        axis.set_ylim(bottom=0)
        # clear of the lines
        canvas.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2)
        ends = (
            f"{line}: from {data[line].iloc[0]:.3g} to {data[line].iloc[-1]:.3g}" for line in names
        )
        alt = f"Line chart over inner SGD steps. {'; '.join(ends)}."
        return finish_figure(canvas, name, caption, alt, data)
