/* A panel of the page "Explore the runs": one measure over meta-training, drawn by uPlot. It is told what to draw and
   where the reader points; of controls, of the address and of other panels it knows nothing. */
(() => {
  "use strict";
  const HEIGHT = 300; // this and all lengths here: CSS pixels
  const REACH = 40; // how near the pointer has to be to a run
  const FONT = "12px system-ui, sans-serif";
  const theme = (variable) => getComputedStyle(document.documentElement).getPropertyValue(variable).trim();

  /** Least and greatest of what is drawn, with a little room. */
  function range({ curves, errors, log }) {
    const within = ({ mean, error }) => mean.flatMap((value, epoch) =>
      errors && !log ? [value - error[epoch], value + error[epoch]] : [value]);
    const drawn = curves.flatMap(({ runs }) => runs.flatMap(within)).filter(Number.isFinite);
    if (!drawn.length) return [0, 1];
    const [low, high] = [Math.min(...drawn), Math.max(...drawn)];
    if (log) return [low / 1.15, high * 1.15];
    const room = 0.05 * (high - low) || 0.1 * Math.abs(high) || 1;
    return [low - room, high + room];
  }

  window.MetanbPanel = class {
    /**
     * @param {HTMLElement} box - what the panel fills.
     * @param {object} what
     *   iterations: where any curve has a value, ascending; log, each, band, errors: whether these are drawn;
     *   curves, one a cell: iterations, those of its epochs 0, 1, ...; mean, low and high, over its runs; colour, dash;
     *     runs: id, mean and error, an entry an epoch;
     *   text: a number as it is written.
     * @param {function(number, ?string)} pointed - told the iteration and the id of the run under the pointer, or null.
     * @param {function(boolean)} left - told when the pointer has gone, and whether it was a finger, which always goes.
     */
    constructor(box, what, pointed, left) {
      Object.assign(this, { box, what, here: what.iterations.at(-1), run: null });
      const { lines, series, bands } = this.lines();
      const axis = {
        stroke: () => theme("--pst-color-text-base"), grid: { stroke: () => theme("--pst-color-border"), width: 1 },
        font: FONT, labelFont: FONT, labelGap: 0, labelSize: 18, ticks: { show: false },
      };
      const x = { ...axis, size: 30, label: "meta-training iteration" };
      const y = { ...axis, size: 56, values: (_, ticks) => ticks.map((tick) => this.tick(tick)) };
      this.plot = new window.uPlot({
        width: box.clientWidth, height: HEIGHT, padding: [12, 24, 0, 0], series, bands, axes: [x, y],
        scales: {
          x: { time: false, range: [-what.iterations.at(-1) / 30, what.iterations.at(-1)] }, // room for circles at 0
          y: { distr: what.log ? 3 : 1, range: range(what) },
        },
        legend: { show: false }, cursor: { show: false }, hooks: { draw: [() => this.drawOver()] },
      }, lines, box);
      this.tip = Object.assign(document.createElement("div"), { className: "tip", hidden: true });
      const { over } = this.plot;
      over.append(this.tip);
      const follow = (event) => pointed(...this.nearest(event));
      for (const kind of ["pointermove", "pointerdown"]) over.addEventListener(kind, follow);
      over.addEventListener("pointerleave", ({ pointerType }) => left(pointerType === "touch"));
    }

    /** The last of a cell's epochs that is not later than an iteration. */
    static epochAt(iterations, here) {
      return iterations.findLastIndex((iteration) => iteration <= here);
    }

    /** The lines that uPlot draws, epoch 0 left out. It draws across undefined (no epoch there), but not across null. */
    lines() {
      const { iterations, curves, each, band } = this.what;
      const [lines, series, bands] = [[iterations], [{}], []];
      for (const { iterations: own, runs, mean, low, high, colour, dash } of curves) {
        const add = (values, options) => {
          lines.push(iterations.map((iteration) => {
            const epoch = own.indexOf(iteration);
            if (epoch < 1 || epoch >= values.length) return undefined;
            return Number.isFinite(values[epoch]) ? values[epoch] : null;
          }));
          series.push({ points: { show: false }, stroke: colour, dash, ...options });
        };
        if (each) for (const run of runs) add(run.mean, { width: 1, alpha: 0.6 });
        if (band) {
          for (const edge of [low, high]) add(edge, { stroke: "transparent", width: 0 });
          bands.push({ series: [series.length - 1, series.length - 2], fill: `${colour}2e` });
        }
        add(mean, { width: 2.5 });
      }
      return { lines, series, bands };
    }

    /** A number on the vertical axis; on a logarithmic one 1, 2, 5, 10, 20 and so on. */
    tick(value) {
      const written = value === null ? "" : this.what.text(value);
      return this.what.log && !/^(0\.0*)?[125]0*(e.*)?$/.test(written) ? "" : written;
    }

    /** What uPlot has no series for: circles of untrained networks, standard errors, and where the reader points. */
    drawOver() {
      const { plot, what, here } = this;
      const { ctx, scales } = plot;
      const scale = window.devicePixelRatio;
      const x = (iteration) => plot.valToPos(iteration, "x", true);
      const y = (value) => plot.valToPos(Math.max(value, scales.y.min), "y", true);
      const line = (points, strokeStyle, width) => {
        ctx.beginPath();
        for (const [iteration, value] of points) ctx.lineTo(x(iteration), y(value));
        Object.assign(ctx, { strokeStyle, lineWidth: width * scale });
        ctx.stroke();
      };
      const disc = (iteration, value, colour, full) => {
        if (!Number.isFinite(value)) return;
        ctx.beginPath();
        ctx.arc(x(iteration), y(value), 4 * scale, 0, 2 * Math.PI);
        Object.assign(ctx, { strokeStyle: colour, fillStyle: colour, lineWidth: scale });
        if (full) ctx.fill();
        else ctx.stroke();
      };
      ctx.save();
      ctx.setLineDash([]);
      line([[here, scales.y.min], [here, scales.y.max]], theme("--pst-color-text-muted"), 1);
      for (const { iterations, runs, mean, colour } of what.curves) {
        const epoch = this.constructor.epochAt(iterations, here);
        for (const run of runs) {
          const points = run.mean.map((value, e) => [iterations[e], value, run.error[e]]);
          const there = points.filter(([, value]) => Number.isFinite(value));
          disc(0, run.mean[0], colour, false);
          for (const [i, value, error] of what.errors ? there : []) {
            line([[i, value - error], [i, value + error]], colour, 1);
          }
          if (run.id !== this.run) continue;
          line(there.filter(([iteration]) => iteration), colour, 2.5);
          disc(iterations[epoch], run.mean[epoch], colour, true);
        }
        if (!this.run) disc(iterations[epoch], mean[epoch], colour, true);
      }
      ctx.restore();
    }

    /** The epoch nearest to the pointer, as its iteration, and the id of the run nearest to it there, or null. */
    nearest({ offsetX, offsetY }) {
      const iteration = this.what.iterations[this.plot.posToIdx(offsetX)];
      let [found, reach] = [null, REACH];
      for (const { iterations, runs } of this.what.curves) {
        const epoch = this.constructor.epochAt(iterations, iteration);
        const late = this.plot.valToPos(iteration, "x") - this.plot.valToPos(iterations[epoch], "x");
        for (const { id, mean } of runs) {
          const away = Math.hypot(late, this.plot.valToPos(mean[epoch], "y") - offsetY);
          if (away < reach) [found, reach] = [id, away];
        }
      }
      return [iteration, found];
    }

    /** Move the cursor to an iteration; single out a run, by its id, and write these words beside it, or neither. */
    point(here, run, words) {
      Object.assign(this, { here, run });
      this.plot.redraw(false, false);
      const curve = this.what.curves.find(({ runs }) => runs.some(({ id }) => id === run));
      const epoch = curve && this.constructor.epochAt(curve.iterations, here);
      const value = curve?.runs.find(({ id }) => id === run).mean[epoch];
      this.tip.hidden = !Number.isFinite(value);
      if (this.tip.hidden) return;
      this.tip.textContent = words;
      const { clientWidth: width, clientHeight: height } = this.plot.over;
      const [left, top] = [this.plot.valToPos(curve.iterations[epoch], "x") + 10, this.plot.valToPos(value, "y")];
      this.tip.style.left = `${Math.max(0, Math.min(left, width - this.tip.offsetWidth))}px`;
      this.tip.style.top = `${top > height / 2 ? top - this.tip.offsetHeight - 10 : top + 10}px`;
    }

    /** Draw again in the theme's present colours. */
    recolour() {
      this.plot.redraw(false, true);
    }

    resize() {
      if (this.box.clientWidth) this.plot.setSize({ width: this.box.clientWidth, height: HEIGHT });
    }

    destroy() {
      this.plot.destroy();
    }
  };
})();
