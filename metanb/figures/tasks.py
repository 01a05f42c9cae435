"""Figures of tasks, and of a network that adapts to them."""

import base64
import io
import itertools
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle
from PIL import Image

from metanb.figures.style import (
    DASHES,
    STYLE,
    Figure,
    finish_figure,
    finish_panels,
    make_panels,
    set_title,
)

if TYPE_CHECKING:
    from metanb.data.tasks import Tasks


def picture_tasks(tasks: "Tasks", name: str, caption: str) -> Figure:
    """Tasks as pictures: a panel of support images and one of query images, a row per task.

    A column is a class; it shows the class's first image of that role. The data have one row per
    picture: a PNG in base64.
    """
    ways = int(tasks.support_y.max()) + 1
    rows = []
    with matplotlib.rc_context(STYLE | {"image.composite_image": False}):
        canvas, axes = make_panels(2)
        for role, axis in zip(("support", "query"), axes, strict=True):
            for task, label in itertools.product(range(len(tasks)), range(ways)):
                image = _first_image(tasks, task, role, label)
                _place_image(axis, image, label, task)
                rows.append((task, role, label, _as_png(image)))
            axis.set(xlim=(-0.5, ways - 0.5), ylim=(len(tasks) - 0.5, -0.5), aspect="equal")
            axis.set(xticks=range(ways), yticks=range(len(tasks)))
            axis.set(xlabel="class of the task", ylabel="task")
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
            axis.grid(False)
            set_title(axis, f"{role} images")
        data = pd.DataFrame(rows, columns=["task", "role", "label", "png"])
        alt = (
            f"{len(tasks)} rows of pictures: {ways} support classes, "
            "then new query images of the same classes."
        )
        return finish_panels(canvas, name, caption, alt, data)


def _as_png(image: np.ndarray) -> str:
    """An image of numbers from 0 to 1 as a PNG file, in base64."""
    file = io.BytesIO()
    Image.fromarray((image * 255).round().astype("uint8")).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _place_image(axis: Any, image: np.ndarray, x: int, y: int) -> None:
    """Draw an image, with a thin frame, around (x, y); its side is a little less than 1."""
    half = 0.47
    box = (x - half, x + half, y + half, y - half)  # left, right, bottom, top: y points down
    axis.imshow(image, cmap="gray_r", vmin=0, vmax=1, extent=box, interpolation="none")
    frame = Rectangle((x - half, y - half), 2 * half, 2 * half, fill=False, alpha=0.2)
    axis.add_patch(frame)


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
