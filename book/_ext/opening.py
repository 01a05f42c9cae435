"""Sphinx extension: the landing page's opening figure, as the substitution `{{ opening }}`.

It is drawn from the committed film of one run: MAML on Omniglot, 5-way 1-shot. Only the landing
page loads its script and its style.
"""

from typing import Any

from committed import committed_runs

from metanb.figures.opening import draw_opening
from metanb.runs.portraits import find_portrait
from metanb.settings import preset

PAGE = "book/index"
SETTINGS = preset("quick", "omniglot", ways=5, shots=1, algorithm="maml", seed=0)


def opening_figure() -> str:
    """The figure, as HTML.

    Raises:
        LookupError: the run's film is not there.
    """
    film = find_portrait("film", SETTINGS)
    if film is None:
        raise LookupError(
            f"results/{SETTINGS.id}.film.json is missing: draw it by "
            "metanb.runs.portraits.portrait, and copy it from the local store"
        )
    runs = [run for run in committed_runs() if run.settings.unseeded == SETTINGS.unseeded]
    return draw_opening(film, runs)


def add_substitution(_: Any, config: Any) -> None:
    """Sphinx's event `config-inited`: give pages the figure."""
    config.myst_substitutions["opening"] = opening_figure()


def add_assets(app: Any, pagename: str, *_: Any) -> None:
    """Sphinx's event `html-page-context`: add script and style to the landing page.

    The script is not deferred: it hides the strip before anything is painted.
    """
    if pagename == PAGE:
        app.add_js_file("opening.js")
        app.add_css_file("opening.css")


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("config-inited", add_substitution)
    app.connect("html-page-context", add_assets)
    return {"parallel_read_safe": True}
