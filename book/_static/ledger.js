// The ledger: a filter of its rows, and folds that open for the row that an address names.
(() => {
  const form = document.getElementById("ledger-filter");
  const rows = [...document.querySelectorAll("table.metanb-ledger tbody tr")];
  const folds = [...document.querySelectorAll("details.metanb-fold:has(table.metanb-ledger)")];
  const choices = [...form.querySelectorAll("select")];
  const count = form.querySelector("output");

  const matches = row =>
    choices.every(choice => !choice.value || row.dataset[choice.name] === choice.value);

  // Hide the rows that do not match. Folds with a match open, and close when everything is shown.
  function filter() {
    const isFiltering = choices.some(choice => choice.value);
    for (const row of rows) row.hidden = !matches(row);
    for (const fold of folds) {
      const shown = fold.querySelectorAll("tbody tr:not([hidden])").length;
      fold.open = isFiltering && shown > 0;
      fold.querySelector("summary span").textContent = isFiltering ? ` (${shown} shown)` : "";
    }
    const shown = rows.filter(row => !row.hidden).length;
    count.textContent = `${shown} of ${rows.length} rows shown`;
  }

  function showAll() {
    for (const choice of choices) choice.value = "";
    filter();
  }

  // Browsers differ in whether they open a fold for the address's row: open it in all of them.
  function showTarget() {
    const row = document.querySelector("table.metanb-ledger tr:target");
    if (!row) return;
    if (row.hidden) showAll();
    row.closest("details").open = true;
    row.scrollIntoView();
  }

  for (const choice of choices) {
    const values = [...new Set(rows.map(row => row.dataset[choice.name]))];
    choice.add(new Option("all", ""));
    for (const value of values) choice.add(new Option(value, value));
  }
  for (const fold of folds) fold.querySelector("summary").append(document.createElement("span"));
  form.addEventListener("change", filter);
  form.querySelector("button").addEventListener("click", showAll);
  form.addEventListener("submit", event => event.preventDefault());
  addEventListener("hashchange", showTarget);
  filter();
  form.hidden = false;
  showTarget();
})();
