"""axe-core's rules for accessibility, on an open page."""

from pathlib import Path

import axe_playwright_python

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
CONTRAST = "color-contrast"  # axe-core's rule
# Elements with text of their own, one for each combination of what the contrast of text depends on:
# its colour, size and weight, and the backgrounds behind it.
ONE_PER_COLOURING = """() => {
    const behind = new Map([[null, '']]);
    const backgrounds = element => {
        if (!behind.has(element)) {
            const style = getComputedStyle(element);
            const own = [style.backgroundColor, style.backgroundImage, style.opacity].join();
            const outer = backgrounds(element.parentElement);
            behind.set(element, own === 'rgba(0, 0, 0, 0),none,1' ? outer : `${outer};${own}`);
        }
        return behind.get(element);
    };
    const colourings = new Map();
    for (const element of document.body.querySelectorAll('*')) {
        const written = [...element.childNodes].some(
            node => node.nodeType === Node.TEXT_NODE && node.data.trim());
        if (!written || !element.checkVisibility({visibilityProperty: true})) continue;
        const {color, fontSize, fontWeight, textShadow} = getComputedStyle(element);
        const key = [color, fontSize, fontWeight, textShadow, backgrounds(element)].join('|');
        if (!colourings.has(key)) colourings.set(key, element);
    }
    return [...colourings.values()];
}"""


def add_axe(page) -> None:
    """Let axe-core run in a page: it sees colours, and not changes of colour."""
    page.add_style_tag(content="*, ::before, ::after { transition: none !important }")
    page.evaluate(AXE.read_text())


def axe(page, *rules: str) -> list[str]:
    """What axe-core finds that is serious or critical by these rules, or by all; one line each.

    Contrast takes axe-core half a minute on a long page, so it looks at one element per colouring.
    """
    options = {"resultTypes": ["violations"], "preload": False}
    violations = []
    if rules != (CONTRAST,):
        chosen = {"runOnly": rules} if rules else {"rules": {CONTRAST: {"enabled": False}}}
        result = page.evaluate("options => axe.run(document, options)", options | chosen)
        violations += result["violations"]
    if not rules or CONTRAST in rules:
        result = page.evaluate(
            f"options => axe.run({{include: ({ONE_PER_COLOURING})()}}, options)",
            options | {"runOnly": [CONTRAST]},
        )
        violations += result["violations"]
    return [
        f"{rule['id']}: {node['target']} {node['html'][:120]}: {node['failureSummary'][:200]}"
        for rule in violations
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]
