"use strict";
/* The browser of changed items. Everything is put in as text. */
(() => {
  if (!document.getElementById("items-data")) return;
  const { baseline, runs, axes, items } = read("items-data");
  const form = document.getElementById("filters");
  const list = document.getElementById("list");
  const more = document.getElementById("more");
  const count = document.getElementById("count");
  const STEP = 30;
  const CHANGES = {
    loss: "right → wrong", gain: "wrong → right", other: "another wrong answer",
  };

  const BASELINE = -1; /* its place among the runs */
  const nameOf = (run) => (run === BASELINE ? baseline : runs[run]);
  /* What a run answered: the baseline's answer, unless it is told; null where the run lacks the item. */
  const answerOf = (item, run) => (run === BASELINE || !(run in item.r) ? item.b : item.r[run]);
  const places = [BASELINE, ...runs.keys()];
  const kind = ([, before], [, after]) => (before && !after ? "loss" : !before && after ? "gain" : "other");
  const countryOf = (item, [choice]) => (Number.isInteger(choice) ? item.c[choice]?.[0] ?? "" : "");
  /* One entry per item and run that answers otherwise than the run it is compared with. */
  const compared = (from) => items.flatMap((item) => {
    const before = answerOf(item, from);
    return before === null ? [] : places.filter((run) => run !== from).flatMap((run) => {
      const answer = answerOf(item, run);
      if (answer === null || (answer[0] === before[0] && answer[1] === before[1])) return [];
      return [{ item, run, before, answer, kind: kind(before, answer), country: countryOf(item, answer) }];
    });
  });
  let from = BASELINE, entries = compared(BASELINE);
  const names = new Intl.DisplayNames(["en"], { type: "language", fallback: "code" });
  const languageName = (code) => { try { return code ? names.of(code) : ""; } catch { return code; } };

  function fill(name, values, label, any) {
    const select = form.elements[name];
    select.append(make("option", { value: "" }, any));
    for (const value of values) select.append(make("option", { value }, label(value)));
    if (values.length < 2) select.closest("label").hidden = values.length === 0;
  }
  const distinct = (values) => [...new Set(values)].filter((value) => value !== "");
  const present = [BASELINE, ...[...new Set(entries.map((entry) => entry.run))].sort((a, b) => a - b)];
  for (const run of present) form.elements.from.append(make("option", { value: run }, nameOf(run)));
  if (present.length < 3) form.elements.from.closest("label").hidden = true;
  fill("run", present.map(String), (run) => nameOf(Number(run)), "all others");
  fill("axis", distinct(items.map((item) => item.a)).map(String), (axis) => axes[axis], "both");
  fill("language", distinct(items.map((item) => item.l)), (code) => languageName(code), "all languages");
  fill("topic", distinct(items.map((item) => item.t)).sort(), (topic) => topic.replaceAll("_", " "), "all topics");
  fill("change", Object.keys(CHANGES), (change) => CHANGES[change], "any change");
  fill("country", distinct(entries.map((entry) => entry.country)).sort(), (country) => country, "any country");

  function matching() {
    const wanted = Object.fromEntries(new FormData(form));
    if (Number(wanted.from) !== from) [from, entries] = [Number(wanted.from), compared(Number(wanted.from))];
    const words = wanted.search.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    return entries.filter(({ item, run, kind, country }) =>
      (!wanted.run || run === Number(wanted.run)) && (!wanted.axis || item.a === Number(wanted.axis)) &&
      (!wanted.language || item.l === wanted.language) && (!wanted.topic || item.t === wanted.topic) &&
      (!wanted.change || kind === wanted.change) && (!wanted.country || country === wanted.country) &&
      words.every((word) => (item.s ??= [item.q, ...item.o].join(" ").toLocaleLowerCase()).includes(word)));
  }

  /* Who chose an option, the right one marked. */
  function option(item, text, index, answers) {
    const now = answers.filter(({ answer }) => answer[0] === index).map(({ run }) => nameOf(run));
    const tags = [];
    if (index === item.g) tags.push(make("b", {}, "✓ right"));
    const countries = (item.c[index] ?? []).join(", ");
    if (countries) tags.push(countries);
    if (index === answers[0].before[0]) tags.push(`before: ${nameOf(from)}`);
    if (now.length) tags.push(make("b", {}, `now: ${now.join(", ")}`));
    const line = make("span", { class: "tags", dir: "ltr", lang: "en" });
    tags.forEach((tag, place) => line.append(...(place ? [" · ", tag] : [tag])));
    const classes = [index === item.g ? "gold" : "", now.length ? "chosen" : ""].filter(Boolean).join(" ");
    return make("li", { class: classes || null, lang: item.l || null }, make("span", { class: "text", dir: "auto" }, text), line);
  }

  function card([item, answers]) {
    const meta = make("p", { class: "meta" }, ...[languageName(item.l), item.t.replaceAll("_", " "), axes[item.a]]
      .filter(Boolean).map((text) => make("span", {}, text)));
    for (const change of Object.keys(CHANGES)) {
      const who = answers.filter((entry) => entry.kind === change).map(({ run }) => nameOf(run));
      if (who.length) meta.append(make("span", { class: change }, `${CHANGES[change]}: ${who.join(", ")}`));
    }
    const question = make("p", { class: "question", dir: "auto", lang: item.l || null }, item.q);
    const texts = item.o.length
      ? item.o.map((text, index) => option(item, text, index, answers))
      : [[nameOf(from), answers[0].before[0]], ...answers.map(({ run, answer }) => [nameOf(run), answer[0]])].map(([name, text]) =>
        make("li", {}, make("span", { class: "text", dir: "auto" }, text ?? ""), make("span", { class: "tags" }, name)));
    return make("li", {}, meta, question, make("ul", { class: "options" }, ...texts));
  }

  /* The diff as a table: what one run chose beside what the other chose, with their margins. */
  const table = document.getElementById("diff");
  const chosen = (item, [choice]) => (Number.isInteger(choice) ? item.o[choice] ?? "" : choice ?? "");
  const margin = ([, , nats]) => (nats === undefined || nats === null ? "" : nats.toFixed(2));
  function row([item, answers]) {
    return answers.map(({ run, before, answer, kind }) => make("tr", {}, ...[
      languageName(item.l), item.q, Number.isInteger(item.g) ? item.o[item.g] : "", chosen(item, before), margin(before),
      nameOf(run), chosen(item, answer), margin(answer), CHANGES[kind],
    ].map((text) => make("td", { dir: "auto" }, text))));
  }
  function head() {
    const titles = ["language", "question", "right", nameOf(from), "margin", "to", "answer", "margin", "change"];
    return make("thead", {}, make("tr", {}, ...titles.map((title) =>
      make("th", { scope: "col" }, make("button", { type: "button", class: "sort" }, title)))));
  }

  let cards = [], shown = 0, total = 0, counts = "";
  function showMore() {
    const next = cards.slice(shown, shown + STEP);
    if (table.hidden) list.append(...next.map(card));
    else table.tBodies[0].append(...next.flatMap(row));
    shown = Math.min(shown + STEP, cards.length);
    more.hidden = shown >= cards.length;
    const tell = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
    count.textContent = cards.length ? `${tell(total, "changed answer", "changed answers")} on ` +
      `${tell(cards.length, "question", "questions")}; showing ${shown.toLocaleString("en")} (${counts})` : "No changed answer matches.";
  }
  function update() {
    const found = matching();
    const byItem = new Map();
    for (const entry of found) byItem.set(entry.item, [...(byItem.get(entry.item) ?? []), entry]);
    [cards, shown, total] = [[...byItem], 0, found.length];
    counts = Object.entries(CHANGES).map(([change, words]) =>
      `${found.filter((entry) => entry.kind === change).length.toLocaleString("en")} ${words}`).join(", ");
    table.hidden = form.elements.view.value !== "table";
    list.replaceChildren();
    table.replaceChildren(head(), make("tbody"));
    showMore();
  }
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(update));
  more.addEventListener("click", showMore);
  update();
})();
