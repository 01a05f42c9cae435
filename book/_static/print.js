/* Before a page is printed: the light theme, and what is folded opens, except code that its author folded. Afterwards
   everything is as it was. */
(() => {
  "use strict";
  const root = document.documentElement;
  let before = null; // the reader's theme, and the elements that were opened

  function prepare() {
    if (before) return;
    const folded = [...document.querySelectorAll("article details:not([open], .hide)")];
    before = { theme: root.dataset.theme, folded };
    root.dataset.theme = "light";
    folded.forEach((element) => { element.open = true; });
  }

  function restore() {
    if (!before) return;
    if (before.theme === undefined) delete root.dataset.theme;
    else root.dataset.theme = before.theme;
    before.folded.forEach((element) => { element.open = false; });
    before = null;
  }

  window.addEventListener("beforeprint", prepare);
  window.addEventListener("afterprint", restore);
  window.matchMedia("print").addEventListener("change", ({ matches }) => (matches ? prepare() : restore()));
})();
