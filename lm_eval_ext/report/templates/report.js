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

  const kind = ([, before], [, after]) => (before && !after ? "loss" : !before && after ? "gain" : "other");
  const countryOf = (item, [choice]) => (Number.isInteger(choice) ? item.c[choice]?.[0] ?? "" : "");
  /* One entry per item and run; an item is shown once, with the runs that match. */
  const entries = items.flatMap((item) =>
    Object.entries(item.r).map(([run, answer]) => ({
      item, run: Number(run), answer, kind: kind(item.b, answer), country: countryOf(item, answer),
    })));
  const names = new Intl.DisplayNames(["en"], { type: "language", fallback: "code" });
  const languageName = (code) => { try { return code ? names.of(code) : ""; } catch { return code; } };

  function fill(name, values, label, any) {
    const select = form.elements[name];
    select.append(make("option", { value: "" }, any));
    for (const value of values) select.append(make("option", { value }, label(value)));
    if (values.length < 2) select.closest("label").hidden = values.length === 0;
  }
  const distinct = (values) => [...new Set(values)].filter((value) => value !== "");
  fill("run", [...new Set(entries.map((entry) => entry.run))].sort((a, b) => a - b).map(String), (run) => runs[run], "all runs");
  fill("axis", distinct(items.map((item) => item.a)).map(String), (axis) => axes[axis], "both");
  fill("language", distinct(items.map((item) => item.l)), (code) => languageName(code), "all languages");
  fill("topic", distinct(items.map((item) => item.t)).sort(), (topic) => topic.replaceAll("_", " "), "all topics");
  fill("change", Object.keys(CHANGES), (change) => CHANGES[change], "any change");
  fill("country", distinct(entries.map((entry) => entry.country)).sort(), (country) => country, "any country");

  function matching() {
    const wanted = Object.fromEntries(new FormData(form));
    const words = wanted.search.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    return entries.filter(({ item, run, kind, country }) =>
      (!wanted.run || run === Number(wanted.run)) && (!wanted.axis || item.a === Number(wanted.axis)) &&
      (!wanted.language || item.l === wanted.language) && (!wanted.topic || item.t === wanted.topic) &&
      (!wanted.change || kind === wanted.change) && (!wanted.country || country === wanted.country) &&
      words.every((word) => (item.s ??= [item.q, ...item.o].join(" ").toLocaleLowerCase()).includes(word)));
  }

  /* Who chose an option, the right one marked. */
  function option(item, text, index, answers) {
    const now = answers.filter(({ answer }) => answer[0] === index).map(({ run }) => runs[run]);
    const tags = [];
    if (index === item.g) tags.push(make("b", {}, "✓ right"));
    const countries = (item.c[index] ?? []).join(", ");
    if (countries) tags.push(countries);
    if (index === item.b[0]) tags.push(`before: ${baseline}`);
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
      const who = answers.filter((entry) => entry.kind === change).map(({ run }) => runs[run]);
      if (who.length) meta.append(make("span", { class: change }, `${CHANGES[change]}: ${who.join(", ")}`));
    }
    const question = make("p", { class: "question", dir: "auto", lang: item.l || null }, item.q);
    const texts = item.o.length
      ? item.o.map((text, index) => option(item, text, index, answers))
      : [[baseline, item.b[0]], ...answers.map(({ run, answer }) => [runs[run], answer[0]])].map(([name, text]) =>
        make("li", {}, make("span", { class: "text", dir: "auto" }, text ?? ""), make("span", { class: "tags" }, name)));
    return make("li", {}, meta, question, make("ul", { class: "options" }, ...texts));
  }

  let cards = [], shown = 0, total = 0;
  function showMore() {
    list.append(...cards.slice(shown, shown + STEP).map(card));
    shown = Math.min(shown + STEP, cards.length);
    more.hidden = shown >= cards.length;
    const tell = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
    count.textContent = cards.length ? `${tell(total, "changed answer", "changed answers")} on ` +
      `${tell(cards.length, "question", "questions")}; showing ${shown.toLocaleString("en")}` : "No changed answer matches.";
  }
  function update() {
    const found = matching();
    const byItem = new Map();
    for (const entry of found) byItem.set(entry.item, [...(byItem.get(entry.item) ?? []), entry]);
    [cards, shown, total] = [[...byItem], 0, found.length];
    list.replaceChildren();
    showMore();
  }
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(update));
  more.addEventListener("click", showMore);
  update();
})();
