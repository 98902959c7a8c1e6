"use strict";
/* The table: every view has an address after the #. Everything is put in as text. */
(() => {
  const board = read("board-data");
  const form = document.getElementById("view");
  const head = document.querySelector("#board thead");
  const body = document.querySelector("#board tbody");
  const count = document.getElementById("count");
  const [SCORE, LOW, HIGH, BIAS, BIAS_LOW, BIAS_HIGH, CHANGE, CHANGE_LOW, CHANGE_HIGH, N, QUESTIONS] = Array(11).keys();
  const columns = board.families.flatMap(({ name, bias }) => [
    { id: name, title: name, family: name, place: SCORE },
    ...(bias ? [{ id: `${name}:bias`, title: "English bias", family: name, place: BIAS, lowIsGood: true }] : []),
  ]);
  const preferred = board.families.find(({ title }) => title === "localization") ?? board.families[0];
  const start = { language: "average", sort: preferred.name, up: "", filter: "", kind: "", comparable: "", run: "" };
  let view = { ...start };

  for (const [code, name] of board.languages) form.elements.language.append(make("option", { value: code }, name));

  const cell = (run, column) => run.families[column.family]?.scores[view.language]?.[column.place] ?? null;
  const ranked = (run, column) => cell(run, column) !== null && run.families[column.family].comparable;
  const number = (value, sign = false) => value === null ? "" : ((sign && value > 0 ? "+" : "") + value.toFixed(1)).replace("-", "−");

  function sorted() {
    const words = view.filter.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    const column = columns.find(({ id }) => id === view.sort);
    const flip = (view.up ? -1 : 1) * (column?.lowIsGood ? -1 : 1);
    return board.runs
      .filter((run) => !view.kind || run.kind === view.kind)
      .filter((run) => !view.comparable || Object.values(run.families).every(({ comparable }) => comparable))
      .filter((run) => words.every((word) => [run.name, run.model, run.plan].join(" ").toLocaleLowerCase().includes(word)))
      .sort((a, b) => {
        const byName = a.name.localeCompare(b.name);
        if (!column) return view.up ? -byName : byName;
        return ranked(b, column) - ranked(a, column) || flip * ((cell(b, column) ?? -1) - (cell(a, column) ?? -1)) || byName;
      });
  }

  function header(title, id, sortable = true) {
    if (!sortable) return make("th", { scope: "col" }, title);
    const active = view.sort === id;
    const button = make("button", { type: "button", "data-sort": id }, title + (active ? (view.up ? " ▲" : " ▼") : ""));
    button.addEventListener("click", () => go({ sort: id, up: active && !view.up ? "1" : "" }));
    return make("th", { scope: "col", "aria-sort": active ? (view.up ? "ascending" : "descending") : null }, button);
  }

  function score(run, column) {
    const family = run.families[column.family];
    const values = family?.scores[view.language];
    if (!values || values[column.place] === null) return make("td", {}, "");
    const node = make("td", { title: `${values[N]} documents on ${values[QUESTIONS]} questions` },
      make("span", { class: "value" }, (family.comparable ? "" : "≠ ") + number(values[column.place])),
      make("span", { class: "ends" }, `[${number(values[column.place + 1])}, ${number(values[column.place + 2])}]`));
    if (column.place === SCORE && values[CHANGE] !== null) {
      node.append(make("span", { class: "ends" },
        `${number(values[CHANGE], true)} [${number(values[CHANGE_LOW], true)}, ${number(values[CHANGE_HIGH], true)}]`));
    }
    return node;
  }

  function details(run) {
    const families = Object.entries(run.families);
    const languages = board.languages.filter(([code]) => families.some(([, family]) => family.scores[code]));
    const table = make("table", {},
      make("thead", {}, make("tr", {}, make("th", {}, "language"), ...families.map(([name]) => make("th", {}, name)))),
      make("tbody", {}, ...languages.map(([code, name]) => make("tr", {}, make("td", {}, name), ...families.map(([, family]) => {
        const values = family.scores[code];
        return make("td", {}, values ? `${number(values[SCORE])} [${number(values[LOW])}, ${number(values[HIGH])}]` : "");
      })))));
    const facts = [["model", run.model], ["plan", run.plan || "unsteered"], ["evaluated", run.date], ...Object.entries(run.details),
      ...families.map(([name, { version, items }]) => [name, `version ${version}, asked ${items}`])];
    const list = make("dl", {}, ...facts.flatMap(([key, value]) => [make("dt", {}, key), make("dd", {}, String(value))]));
    const link = make("a", { href: `#${address({ ...start, run: run.name })}` }, "Link to this run");
    return make("tr", { class: "details" }, make("td", { colspan: columns.length + 2 },
      make("div", { class: "inside" }, make("div", { class: "wide", tabindex: "0", role: "region", "aria-label": `Languages of ${run.name}` }, table), list, link)));
  }

  function draw() {
    for (const name of ["language", "kind", "filter"]) if (form.elements[name].value !== view[name]) form.elements[name].value = view[name];
    form.elements.comparable.checked = Boolean(view.comparable);
    head.replaceChildren(make("tr", {}, header("#", "", false), header("run", "name"), ...columns.map(({ title, id }) => header(title, id))));
    const runs = sorted();
    const column = columns.find(({ id }) => id === view.sort);
    let place = 0;
    body.replaceChildren(...runs.flatMap((run) => {
      const open = run.name === view.run;
      const rank = column ? (ranked(run, column) ? String(++place) : "≠") : String(++place);
      const name = make("button", { type: "button", class: "run-name", "aria-expanded": String(open) }, run.name);
      name.addEventListener("click", () => go({ run: open ? "" : run.name }));
      const told = [run.model, run.plan || "unsteered", run.kind === "steered" || run.kind === "unsteered" ? "" : `control: ${run.kind}`];
      const row = make("tr", { class: [open ? "linked" : "", rank === "≠" ? "apart" : ""].filter(Boolean).join(" ") || null },
        make("td", {}, rank), make("td", {}, name, make("span", { class: "small" }, told.filter(Boolean).join(" · "))),
        ...columns.map((entry) => score(run, entry)));
      return open ? [row, details(run)] : [row];
    }));
    count.textContent = `${runs.length} of ${board.runs.length} runs`;
  }

  function address(wanted) {
    const changed = Object.entries(wanted).filter(([key, value]) => value !== start[key]);
    return new URLSearchParams(changed).toString();
  }
  function go(changes) {
    view = { ...view, ...changes };
    history.replaceState(null, "", `#${address(view)}`);
    draw();
  }
  function open() {
    const asked = new URLSearchParams(location.hash.slice(1));
    if (document.getElementById(location.hash.slice(1))) return;
    view = Object.fromEntries(Object.entries(start).map(([key, value]) => [key, asked.get(key) ?? value]));
    if (!board.languages.some(([code]) => code === view.language)) view.language = start.language;
    draw();
    body.querySelector("tr.linked")?.scrollIntoView({ block: "center" });
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => go({
    language: form.elements.language.value, kind: form.elements.kind.value, filter: form.elements.filter.value,
    comparable: form.elements.comparable.checked ? "1" : "",
  }));
  document.getElementById("link").addEventListener("click", async (event) => {
    try { await navigator.clipboard.writeText(location.href); event.target.textContent = "Copied"; }
    catch { event.target.textContent = "The address bar has it"; }
  });
  addEventListener("hashchange", open);
  draw();
  open();
})();
