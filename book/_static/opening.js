/* The landing page's opening figure (metanb/figures/opening.py draws it): one map at a time, chosen by a slider.

   The class on the root makes the style sheet hide the strip of maps before anything is painted. */
(() => {
  "use strict";
  document.documentElement.classList.add("metanb-scripted");

  function start(figure) {
    const slider = figure.querySelector("input");
    const output = figure.querySelector("output");
    const parts = [...figure.querySelectorAll("[data-frame]")];
    const show = () => {
      for (const part of parts) part.classList.toggle("now", part.dataset.frame === slider.value);
      const { moment, gain } = figure.querySelector(".frame.now").dataset;
      slider.setAttribute("aria-valuetext", `${moment}: accuracy on new tasks goes ${gain}`);
      output.textContent = moment;
    };
    slider.addEventListener("input", show);
    show();
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll(".metanb-opening").forEach(start);
  });
  // a page that comes back from the browser's history keeps its slider where it was
  window.addEventListener("pageshow", () => {
    for (const slider of document.querySelectorAll(".metanb-opening input")) slider.dispatchEvent(new Event("input"));
  });
})();
