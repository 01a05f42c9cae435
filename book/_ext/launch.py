"""Sphinx extension: buttons that open a notebook elsewhere, and words about them, once there is an address for it.

It is the repository's: `repository_url` in _config.yml. While it is empty there is neither button
nor word.
"""

from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


def address(config: Any) -> str:
    """Where the repository is, or ""."""
    return config.html_theme_options.get("repository_url", "")


def no_buttons_to_nowhere(app: Any, config: Any) -> None:
    """Sphinx's event `config-inited`: the theme cannot make its buttons without an address."""
    if not address(config):
        config.html_theme_options["launch_buttons"] = {}


class WithAddress(SphinxDirective):
    """`{with-address}` shows its content, ADDRESS replaced, if the repository has one."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """The content, or nothing."""
        url = address(self.config)
        if not url:
            return []
        content = StringList(
            [line.replace("ADDRESS", url) for line in self.content], source=self.get_location()
        )
        box = nodes.container()
        self.state.nested_parse(content, self.content_offset, box)
        return box.children


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("config-inited", no_buttons_to_nowhere)
    app.add_directive("with-address", WithAddress)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
