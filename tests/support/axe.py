"""axe-core's rules for accessibility, on an open page."""

from pathlib import Path

import axe_playwright_python

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
CONTRAST = "color-contrast"  # axe-core's rule
# What contrast depends on: the colour, size and weight of text, and the backgrounds behind it.
COLOURINGS = """() => {
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
    return element => {
        const {color, fontSize, fontWeight, textShadow} = getComputedStyle(element);
        return [color, fontSize, fontWeight, textShadow, backgrounds(element)].join('|');
    };
}"""
# Marks one element for each colouring, among those with text of their own; axe-core leaves it open
# whether a single letter has contrast.
MARK_ONE_PER_COLOURING = f"""() => {{
    const colouring = ({COLOURINGS})();
    const colourings = new Set();
    for (const element of document.body.querySelectorAll('*')) {{
        delete element.dataset.colouring;
        const text = [...element.childNodes].map(
            node => node.nodeType === Node.TEXT_NODE ? node.data : '').join('').trim();
        if (text.length < 2 || !element.checkVisibility({{visibilityProperty: true}})) continue;
        const key = colouring(element);
        if (!colourings.has(key)) element.dataset.colouring = '';
        colourings.add(key);
    }}
}}"""
# Takes out most words' own elements in code and signatures, which leaves their text, and most lines
# in pictures. No rule but contrast speaks of them, and one for each colouring stays.
THIN = f"""() => {{
    const root = document.documentElement;
    const theme = root.dataset.theme;
    const words = [...document.querySelectorAll(':is(pre, code, .sig) :is(span, em)')].filter(
        word => word.getAttributeNames().every(name => name === 'class'));
    const keys = words.map(word => [word.checkVisibility(), word.textContent.trim().length > 1]);
    for (const shade of ['light', 'dark']) {{
        root.dataset.theme = shade;
        const colouring = ({COLOURINGS})();
        words.forEach((word, place) => {{ keys[place] += colouring(word); }});
    }}
    root.dataset.theme = theme;
    const kept = new Set();
    words.forEach((word, place) => {{
        if (kept.has(keys[place])) word.replaceWith(...word.childNodes);
        kept.add(keys[place]);
    }});
    document.querySelectorAll(':is([role=img], [aria-hidden=true]) :is(path, use, circle)'
        + ':not([role], [tabindex], [id], :has(*))').forEach(line => line.remove());
}}"""


# Runs axe-core for contrast while what holds no marked element is empty, so that its time does not
# grow with the page. Afterwards the page is as before.
CONTRAST_ALONE = """async options => {
    const emptied = [];
    const empty = element => {
        if (element.matches(':is([data-colouring], :has([data-colouring]))'))
            [...element.children].forEach(empty);
        else if (element.firstElementChild && !element.matches(':has(style, link, script)')) {
            emptied.push([element, [...element.childNodes]]);
            element.replaceChildren();
        }
    };
    empty(document.body);
    const result = await axe.run(document, options);
    emptied.forEach(([element, nodes]) => element.replaceChildren(...nodes));
    return result;
}"""


def add_axe(page) -> None:
    """Let axe-core run in a page: it sees colours, and not changes of colour."""
    page.add_style_tag(content="*, ::before, ::after { transition: none !important }")
    page.add_script_tag(url=AXE.as_uri())
    selector = "[data-colouring]"
    page.evaluate("rule => axe.configure({rules: [rule]})", {"id": CONTRAST, "selector": selector})


def axe(page, *rules: str) -> list[str]:
    """What axe-core finds that is serious or critical by these rules, or by all; one line each.

    Its time grows with the elements of a page: it sees one without most elements of code, and one
    element per colouring for contrast.
    """
    page.evaluate(THIN)
    page.evaluate(MARK_ONE_PER_COLOURING)
    options = {"resultTypes": ["violations"], "preload": False}
    options |= {"runOnly": rules} if rules else {}
    run = CONTRAST_ALONE if rules == (CONTRAST,) else "options => axe.run(document, options)"
    return [
        f"{rule['id']}: {node['target']} {node['html'][:120]}: {node['failureSummary'][:200]}"
        for rule in page.evaluate(run, options)["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]
