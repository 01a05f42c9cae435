"""Sphinx extension: buttons that open a notebook elsewhere, and text about them.

Both need the repository's address, `repository_url` in _config.yml. While it is empty, neither is
shown.
"""

from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


def repository_address(config: Any) -> str:
    """The repository's address; "" where there is none."""
    return config.html_theme_options.get("repository_url", "")


def remove_buttons_without_address(app: Any, config: Any) -> None:
    """Sphinx's event `config-inited`: the theme cannot make its buttons without an address."""
    if not repository_address(config):
        config.html_theme_options["launch_buttons"] = {}


class WithAddress(SphinxDirective):
    """`{with-address}` shows its content, ADDRESS replaced, if the repository has an address."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """The content, or nothing."""
        address = repository_address(self.config)
        if not address:
            return []
        lines = [line.replace("ADDRESS", address) for line in self.content]
        content = StringList(lines, source=self.get_location())
        box = nodes.container()
        self.state.nested_parse(content, self.content_offset, box)
        return box.children


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("config-inited", remove_buttons_without_address)
    app.add_directive("with-address", WithAddress)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
