/* The page "Explore the runs": what the reader chooses is drawn by explorer-panel.js, from explorer-data.js (what that
   holds is said in book/_ext/explorer.py), and said in words and numbers.

   A change goes one way: state, panels, controls, words, address (`show`). Where the reader points, `at`, has a shorter
   way of its own (`point`), as a pointer moves often. */
(async () => {
  "use strict";
  const $ = (id) => document.getElementById(`explore-${id}`);
  const missing = (!window.METANB_RUNS && "explorer-data.js") || (!window.uPlot && "uplot/uPlot.iife.min.js") ||
    (!window.MetanbPanel && "explorer-panel.js");
  if (missing) {
    $("problem").textContent = `No curves: _static/${missing} is missing. Build the book again, with make book.`;
    $("problem").hidden = false;
    return;
  }

  /** The object that a script holds as JSON, gzip, base 85: five letters are four bytes. */
  async function unpack(packed) {
    const letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~";
    const digits = new Map([...letters].map((letter, digit) => [letter, digit]));
    const padded = packed.padEnd(5 * Math.ceil(packed.length / 5), "~");
    const view = new DataView(new ArrayBuffer((4 * padded.length) / 5));
    for (let start = 0; start < padded.length; start += 5) {
      let value = 0;
      for (let i = 0; i < 5; i++) value = 85 * value + digits.get(padded[start + i]);
      view.setUint32((4 * start) / 5, value);
    }
    const bytes = new Uint8Array(view.buffer, 0, view.byteLength - (padded.length - packed.length));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  // The records
  const data = await unpack(window.METANB_RUNS);
  const measures = new Map(data.measures.map((measure, place) => [measure.name, { ...measure, place }]));
  const cells = data.cells;
  cells.flatMap((cell) => cell.runs).forEach((run, number) => { // the data hold curves by measure
    for (const kind of ["means", "errors"]) run[kind] = data[kind].map((ofRuns) => ofRuns[number]);
  });
  const cellOf = new Map(cells.flatMap((cell) => cell.runs.map((run) => [run.id, cell]))); // by the id of a run
  const own = new Set();
  const DATA = ["dataset", "setting", "scale"];
  const kind = (cell) => [cell.algorithm, cell.variant].filter(Boolean).join(", ");
  const group = (cell) => `${cell.dataset}, ${cell.setting}, ${cell.scale} scale`;
  const distinct = (values) => [...new Set(values)];
  /** The numbers of a curve, "0.25 0.3 0.28", or of its steps, "2:25 5 -2", see explorer.py. */
  function numbers(text) {
    const [decimals, steps] = text.split(":");
    if (steps === undefined) return text ? text.split(" ").map(Number) : [];
    let count = 0;
    return steps.split(" ").map((step) => (count += Number(step)) / 10 ** decimals);
  }

  /** A cell's curves of a measure: those of its runs; over them mean, least and greatest, as far as all runs got. */
  function curvesOf(cell, measure) {
    const { place } = measures.get(measure);
    const runs = cell.runs.map(({ id, seed, means, errors }) =>
      ({ id, seed, mean: numbers(means[place]), error: numbers(errors[place]) }));
    const over = (how) => cell.iterations.map((_, epoch) => {
      const values = runs.map((run) => run.mean[epoch]);
      return values.every(Number.isFinite) ? how(values) : NaN;
    });
    const mean = over((values) => values.reduce((sum, value) => sum + value, 0) / values.length);
    const [low, high] = [over((values) => Math.min(...values)), over((values) => Math.max(...values))];
    return { ...look(cell), cell, iterations: cell.iterations, runs, mean, low, high };
  }

  // State, and the address that holds it
  const state = { dataset: "", setting: "", scale: "", cells: [], show: [], draw: new Set(), log: new Set() };
  const at = { iteration: Infinity, run: null }; // the last iteration, and no run
  let shown = []; // a measure each: measure, curves (one a cell), positive, panel
  let union = []; // the iterations at which any of the cells was measured

  /** The cells on offer: those of the data, unchanged settings first, then what is shown of other data. */
  function offered() {
    const here = cells.filter((cell) => DATA.every((key) => cell[key] === state[key]));
    return distinct([...here.filter((cell) => !cell.variant), ...here, ...state.cells]);
  }

  /** Colour and dash of a cell's lines: 8 colours and 3 dashes in step, so that 24 cells differ. */
  function look(cell) {
    const place = offered().indexOf(cell);
    return { colour: data.colours[place % data.colours.length], dash: [[], [8, 4], [2, 3]][place % 3] };
  }

  /** What a cell is called among others: its data are named, too, as far as these differ. */
  function name(cell, among = state.cells) {
    const differ = DATA.filter((key) => among.some((other) => other[key] !== among[0][key]));
    const words = differ.map((key) => (key === "scale" ? `${cell.scale} scale` : cell[key]));
    return words.length ? `${kind(cell)} (${words.join(", ")})` : kind(cell);
  }

  function chooseData(cell) {
    for (const key of DATA) state[key] = cell[key];
  }

  function readAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    const list = (key, otherwise) => (given.has(key) ? given.get(key).split(",").filter(Boolean) : otherwise);
    state.cells = distinct(list("runs", []).map((id) => cellOf.get(id)).filter(Boolean));
    const unknown = list("runs", []).filter((id) => !cellOf.has(id));
    $("problem").textContent = `No run ${unknown[0]} here${unknown.length > 1 ? ` (${unknown.length} such names)` : ""}.`;
    $("problem").hidden = !unknown.length;
    const first = cells.find((cell) => cell.dataset === "Omniglot" && cell.scale === "quick") ?? cells[0];
    chooseData(state.cells[0] ?? first);
    if (!state.cells.length) state.cells = offered().slice(0, 2);
    state.show = distinct(list("show", []).filter((measure) => measures.has(measure))).slice(0, 2);
    if (!state.show.length) state.show = ["hessian_norm", "query_accuracy"];
    state.draw = new Set(list("draw", ["runs", "band"]));
    state.log = new Set(list("log", state.show.filter((measure) => measures.get(measure).log)));
    Object.assign(at, { iteration: Number(given.get("at") ?? Infinity), run: null });
  }

  function writeAddress() {
    const runs = state.cells.map((cell) => cell.runs[0].id);
    const log = state.show.filter((measure) => state.log.has(measure));
    const parts = { runs, show: state.show, draw: [...state.draw], log };
    if (Number.isFinite(at.iteration)) parts.at = [at.iteration];
    const written = Object.entries(parts).map(([key, values]) => `${key}=${values.join(",")}`);
    history.replaceState(null, "", `#${written.join("&")}`);
  }

  // Small pieces of text and HTML
  const text = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(4))) : "–");
  const count = (value) => value.toLocaleString("en-GB");
  const runsOf = (cell) => `${cell.runs.length} run${cell.runs.length > 1 ? "s" : ""}`;
  const label = (measure) => measures.get(measure).label;

  function element(tag, attributes, ...children) {
    const made = Object.assign(document.createElement(tag), attributes);
    made.append(...children);
    return made;
  }

  /** A cell's line, and words. */
  function keyed(cell, ...contents) {
    const { colour, dash } = look(cell);
    const line = `<path d="M0 6H30" stroke="${colour}" stroke-width="4" stroke-dasharray="${dash.join(" ")}"/>`;
    const svg = `<svg class="swatch" viewBox="0 0 30 12" aria-hidden="true">${line}</svg> `;
    const made = element("span", { innerHTML: svg });
    made.append(...contents);
    return made;
  }

  function fillTable(table, head, rows) {
    const heads = head.map((words) => element("th", { scope: "col" }, words));
    const lines = rows.map(([first, ...others]) =>
      element("tr", {}, element("th", { scope: "row" }, first), ...others.map((words) => element("td", {}, words))));
    table.replaceChildren(element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...lines));
  }

  // Controls
  function showControls() {
    const fill = (select, pairs, chosen) =>
      select.replaceChildren(...pairs.map(([value, words]) => new Option(words, value, false, value === chosen)));
    DATA.forEach((key, depth) => {
      const fitting = cells.filter((cell) => DATA.slice(0, depth).every((above) => cell[above] === state[above]));
      fill($(key), distinct(fitting.map((cell) => cell[key])).map((value) => [value, value]), state[key]);
    });
    const all = data.measures.map((measure) => [measure.name, measure.label]);
    fill($("first"), all, state.show[0]);
    fill($("second"), [["", "none"], ...all], state.show[1] ?? "");
    for (const place of [0, 1]) {
      $(`log${place}`).checked = state.log.has(state.show[place]);
      $(`log${place}`).disabled = !shown[place]?.positive;
    }
    for (const box of $("draw").querySelectorAll("input")) box.checked = state.draw.has(box.value);

    const pressed = $("cells").contains(document.activeElement) ? document.activeElement.value : null;
    const offer = offered();
    const special = offer.filter((cell) => cell.variant);
    const boxes = (some) => some.map((cell) => {
      const box = element("input", { type: "checkbox", value: cell.runs[0].id, checked: state.cells.includes(cell) });
      return element("label", { className: "box" }, box, keyed(cell), element("span", {}, name(cell, offer)));
    });
    const [plain, more] = $("cells").querySelectorAll(".boxes");
    plain.replaceChildren(...boxes(offer.filter((cell) => !cell.variant)));
    more.replaceChildren(...boxes(special));
    const fold = more.parentElement;
    fold.hidden = !special.length;
    fold.open ||= special.some((cell) => state.cells.includes(cell));
    fold.firstElementChild.textContent = `With other settings (${special.length})`;
    if (pressed) $("cells").querySelector(`input[value="${pressed}"]`)?.focus();
  }

  /** Other data: the same kinds of runs there, or the first two; beside those that are shown, if these are kept. */
  function moveTo(cell) {
    const before = state.cells;
    chooseData(cell);
    state.cells = [];
    const here = offered();
    const alike = here.filter((one) => before.some((other) => kind(other) === kind(one)));
    state.cells = distinct([...($("keep").checked ? before : []), ...(alike.length ? alike : here.slice(0, 2))]);
  }

  function changed({ target }) {
    const { value, checked } = target;
    const control = target.id.replace("explore-", "");
    const turn = (set, member) => set[checked ? "add" : "delete"](member);
    if (control === "keep") return;
    if (control === "at") {
      point(Number(value) < union.length - 1 ? union[value] : Infinity, null);
      writeAddress();
      return;
    }
    if (DATA.includes(control)) { // what was chosen of the others stays, as far as there is such a cell
      const wanted = { ...state, [control]: value };
      const fits = (depth) => cells.find((cell) => DATA.slice(0, depth).every((key) => cell[key] === wanted[key]));
      moveTo(fits(3) ?? fits(2) ?? fits(1));
    } else if (control === "first" || control === "second") {
      const place = control === "first" ? 0 : 1;
      if (state.show[1 - place] === value) state.show[1 - place] = state.show[place];
      state.show[place] = value;
      state.show = state.show.filter(Boolean);
      if (measures.get(value)?.log) state.log.add(value);
    } else if (control.startsWith("log")) {
      turn(state.log, state.show[control.slice(3)]);
    } else if ($("draw").contains(target)) {
      turn(state.draw, value);
    } else {
      const chosen = new Set(state.cells);
      turn(chosen, cellOf.get(value));
      state.cells = offered().filter((cell) => chosen.has(cell));
    }
    show();
  }

  // Where the reader points
  const where = () => union.findLast((iteration) => iteration <= at.iteration) ?? union[0];
  const epochOf = (cell) => window.MetanbPanel.epochAt(cell.iterations, where());
  const late = (cell, epoch) => (cell.iterations[epoch] === where() ? "" : `, at ${count(cell.iterations[epoch])}`);
  const withError = (cell, { mean, error }, epoch) => (Number.isFinite(mean[epoch])
    ? text(mean[epoch]) + (error[epoch] > 0 ? ` ± ${text(error[epoch])}` : "") + late(cell, epoch) : "–");

  /** Put the cursors of all panels, the slider and the tables at an iteration, and single out a run, or none. */
  function point(iteration, id) {
    Object.assign(at, { iteration, run: id });
    const here = where();
    $("at").value = union.indexOf(here);
    $("where").textContent = here ? `${count(here)} of ${count(union.at(-1))}` : "0, untrained";
    $("at").setAttribute("aria-valuetext", $("where").textContent);
    for (const { curves, panel } of shown) {
      const curve = id && curves.find(({ cell }) => cell === cellOf.get(id));
      const run = id && curve.runs.find((one) => one.id === id);
      const words = id && `${name(curve.cell)}, seed ${run.seed}: ${withError(curve.cell, run, epochOf(curve.cell))}`;
      panel.point(here, id, words);
    }
    showTables();
  }

  // Words and numbers
  function showTables() {
    const heads = state.show.map(label);
    const means = ({ cell, mean, low, high }) => {
      const epoch = epochOf(cell);
      if (!Number.isFinite(mean[epoch])) return "–";
      return `${text(mean[epoch])} (${text(low[epoch])} to ${text(high[epoch])})${late(cell, epoch)}`;
    };
    fillTable($("table"), ["Mean (least to greatest)", ...heads], state.cells.map((cell, place) =>
      [keyed(cell, `${name(cell)}: ${runsOf(cell)}`), ...shown.map(({ curves }) => means(curves[place]))]));
    if (!$("each").open) return;
    fillTable($("each").querySelector("table"), ["Run", ...heads], state.cells.flatMap((cell, place) => cell.runs.map(({ id, seed }, i) => [
      keyed(cell, own.has(cell) ? `${name(cell)}, ${id}`
        : element("a", { href: `runs.html#${id}` }, `${name(cell)}, seed ${seed}`)),
      ...shown.map(({ curves }) => withError(cell, curves[place].runs[i], epochOf(cell))),
    ])));
  }

  function summary() {
    const ends = ({ cell, iterations, mean }) => {
      const last = mean.findLastIndex(Number.isFinite);
      return last < 1 ? `${name(cell)} not recorded` : `${name(cell)} from ${text(mean[1])} after the first epoch to ` +
        `${text(mean[last])} after ${count(iterations[last])} iterations`;
    };
    const said = shown.map(({ measure, curves, positive }) => {
      const more = curves.length > 4 ? "; the others stand in the table" : "";
      const refused = state.log.has(measure) && !positive ? ". No log axis: some values are not above 0" : "";
      return `${label(measure)}: ${curves.slice(0, 4).map(ends).join("; ")}${more}${refused}.`;
    });
    const counted = state.cells.slice(0, 4).map((cell) => `${runsOf(cell)} of ${name(cell)}`);
    const more = state.cells.length > 4 ? `; and ${state.cells.length - 4} more` : "";
    return `${distinct(state.cells.map(group)).join("; ")}. Means over ${counted.join("; ")}${more}. ${said.join(" ")}`;
  }

  function csv() {
    const head = [...DATA, "algorithm", "variant", "run", "seed", "measure", "epoch", "iteration", "mean", "sem"];
    const lines = shown.flatMap(({ measure, curves }) => curves.flatMap(({ cell, runs }) => runs.flatMap((run) =>
      run.mean.map((mean, epoch) => [...DATA.map((key) => cell[key]), cell.algorithm, cell.variant, run.id, run.seed,
        measure, epoch, cell.iterations[epoch], mean, run.error[epoch]]))));
    const quoted = (value) => (/[",]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value);
    const recorded = lines.filter((line) => Number.isFinite(line.at(-2)));
    return [head, ...recorded].map((line) => `${line.map(quoted).join(",")}\n`);
  }

  function save() {
    const href = URL.createObjectURL(new Blob(csv(), { type: "text/csv" }));
    element("a", { href, download: "metanb-curves.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(href), 10_000);
  }

  // The reader's own records
  const COLUMNS = ["epoch", "iteration", "measure", "mean", "sem"];

  function readMeasures(csvText, file) {
    const [head, ...lines] = csvText.trim().split(/\r?\n/).map((line) => line.split(","));
    const column = new Map(head.map((words, place) => [words, place]));
    const lacking = COLUMNS.filter((words) => !column.has(words));
    if (lacking.length) throw new Error(`${file} has no column ${lacking[0]}`);
    const cellsOf = lines.map((line) => Object.fromEntries(COLUMNS.map((words) => [words, line[column.get(words)]])));
    const epochs = Math.max(...cellsOf.map(({ epoch }) => Number(epoch)));
    if (!Number.isInteger(epochs) || epochs < 1 || epochs > 1e5) throw new Error(`${file} has no epochs 0, 1, 2 and so on`);
    const iterations = Array.from({ length: epochs + 1 }, (_, epoch) =>
      Number(cellsOf.find((row) => Number(row.epoch) === epoch)?.iteration));
    if (!iterations.every(Number.isFinite)) throw new Error(`${file} lacks an epoch`);
    const by = new Map();
    for (const { epoch, measure, mean, sem } of cellsOf) {
      if (!by.has(measure)) by.set(measure, { mean: Array(epochs + 1).fill("NaN"), sem: Array(epochs + 1).fill("NaN") });
      by.get(measure).mean[epoch] = mean || "NaN";
      by.get(measure).sem[epoch] = sem || "NaN";
    }
    const joined = (part) => data.measures.map(({ name: key }) => (by.has(key) ? by.get(key)[part].join(" ") : ""));
    return { iterations, means: joined("mean"), errors: joined("sem") };
  }

  /** Runs as cells; those that differ by seeds share one. */
  function addOwn(runs) {
    const made = new Map();
    for (const { name: title, settings, measures: read } of runs) {
      const { seed = 0, class_seed: _, ...rest } = settings ?? { seed: 0, title };
      const key = JSON.stringify([rest, read.iterations]);
      const cell = made.get(key) ?? {
        dataset: "Your own", setting: settings ? `${settings.dataset}, ${settings.ways}-way ${settings.shots}-shot` : "files",
        scale: "your", algorithm: settings ? settings.algorithm : title, variant: "", iterations: read.iterations, runs: [],
      };
      const id = `own-${title.replace(/[,#&]/g, "-")}`;
      if (cellOf.has(id)) continue; // opened before
      cell.runs.push({ id, seed, means: read.means, errors: read.errors });
      cellOf.set(id, cell);
      made.set(key, cell);
    }
    const added = [...made.values()].filter((cell) => cell.runs.length);
    for (const cell of added) own.add(cell);
    cells.push(...added);
    return added;
  }

  async function filesBelow(entries) {
    const found = [];
    for (const entry of entries) {
      if (entry.isFile) {
        found.push([entry.fullPath.slice(1), await new Promise((resolve, reject) => entry.file(resolve, reject))]);
      } else if (entry.isDirectory) {
        const reader = entry.createReader();
        for (;;) {
          const portion = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
          if (!portion.length) break;
          found.push(...await filesBelow(portion));
        }
      }
    }
    return found;
  }

  /** The text of a file, which may be compressed. */
  function textOf(file) {
    if (!file.name.endsWith(".gz")) return file.text();
    const plain = new Response(file.stream().pipeThrough(new DecompressionStream("gzip")));
    return plain.text().catch(() => {
      throw new Error(`${file.name} is damaged: gzip cannot read it`);
    });
  }

  /** Open csv files, with a settings.json beside them or not. */
  async function openOwn(files) {
    const problem = $("problem");
    problem.hidden = true;
    try {
      const byPath = new Map(files);
      const tables = files.filter(([path]) => /\.csv(\.gz)?$/.test(path));
      if (!tables.length) throw new Error("No csv file there: open the measures.csv of a run, its folder, or a store");
      const runs = [];
      for (const [path, file] of tables) {
        const folder = path.split("/").slice(0, -1).join("/");
        const settingsFile = byPath.get(`${folder}/settings.json`);
        const settings = settingsFile ? JSON.parse(await settingsFile.text()) : null;
        const title = settings ? folder.split("/").at(-1) : path.split("/").at(-1);
        runs.push({ name: title, settings, measures: readMeasures(await textOf(file), path) });
      }
      const added = addOwn(runs);
      if (!added.length) throw new Error("These runs are open already");
      chooseData(added[0]);
      state.cells = distinct([...state.cells, ...added]); // beside what is shown
      show();
    } catch (error) {
      problem.textContent = `${error.message}.`;
      problem.hidden = false;
    }
  }

  const drop = $("own");
  drop.addEventListener("input", (event) => event.stopPropagation());
  drop.querySelector("input").addEventListener("change", ({ target }) => {
    openOwn([...target.files].map((file) => [file.webkitRelativePath || file.name, file]));
    target.value = "";
  });
  for (const kindOfEvent of ["dragover", "drop"]) {
    document.addEventListener(kindOfEvent, (event) => {
      if (![...event.dataTransfer.types].includes("Files")) return;
      event.preventDefault();
      if (kindOfEvent === "drop") {
        const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
        filesBelow(entries).then(openOwn);
      }
    });
  }

  // The page
  function show() {
    for (const { panel } of shown) panel.destroy();
    union = distinct(state.cells.flatMap((cell) => cell.iterations)).sort((one, other) => one - other);
    $("panels").classList.toggle("single", state.show.length < 2);
    const left = (stays) => [point(at.iteration, stays ? at.run : null), writeAddress()];
    shown = (state.cells.length ? state.show : []).map((measure, place) => {
      const curves = state.cells.map((cell) => curvesOf(cell, measure));
      const positive = curves.every(({ runs }) => runs.every(({ mean }) => mean.every((value) => !(value <= 0))));
      const [each, band, errors] = ["runs", "band", "errors"].map((part) => state.draw.has(part));
      const what = { iterations: union, curves, each, band, errors, text, log: state.log.has(measure) && positive };
      const panel = new window.MetanbPanel($(`plot${place}`), what, point, left);
      return { measure, curves, positive, panel };
    });
    showControls();
    $("at").max = Math.max(union.length - 1, 0);
    $("summary").textContent = shown.length ? summary() : "Nothing is drawn: choose runs above.";
    if (shown.length) point(at.iteration, null);
    else for (const table of form.querySelectorAll("table")) table.replaceChildren();
    writeAddress();
  }

  const again = () => [readAddress(), show()];
  const form = document.getElementById("explore");
  form.hidden = false;
  form.addEventListener("input", changed);
  form.addEventListener("submit", (event) => event.preventDefault());
  $("each").addEventListener("toggle", () => shown.length && showTables());
  $("csv").addEventListener("click", save);
  $("reset").addEventListener("click", () => [history.replaceState(null, "", "#"), again()]);
  window.addEventListener("hashchange", again);
  new ResizeObserver(() => shown.forEach(({ panel }) => panel.resize())).observe($("panels"));
  new MutationObserver(() => shown.forEach(({ panel }) => panel.recolour()))
    .observe(document.documentElement, { attributeFilter: ["data-theme"] });
  again();
})();
