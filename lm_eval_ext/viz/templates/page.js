"use strict";
/* Every page: light and dark, the figures, their downloads. Data comes from JSON blocks; no text is ever made markup. */
const read = (id) => JSON.parse(document.getElementById(id).textContent);

const Theme = {
  colours: read("theme-colours"),
  stored() { try { return localStorage.getItem("theme"); } catch { return null; } },
  isDark() {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  },
  choose(name) {
    document.documentElement.dataset.theme = name;
    try { localStorage.setItem("theme", name); } catch { /* a page opened from a file may have no storage */ }
  },
  /* The part of a figure in the colours of the theme; `from` is the theme it is in. */
  recolour(part, from, to) {
    if (from === to) return part;
    const map = new Map(this.colours.map(([light, dark]) => (to ? [light, dark] : [dark, light])));
    const walk = (value) => {
      if (typeof value === "string") return map.get(value) ?? value;
      if (Array.isArray(value)) return value.map(walk);
      if (value && typeof value === "object" && !ArrayBuffer.isView(value)) {
        return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, walk(entry)]));
      }
      return value;
    };
    return walk(part);
  },
};

const Charts = {
  drawn: [],
  /* No bar of tools: it would cover the menus; downloads stand below, dragging zooms, a double click goes back. */
  config: { responsive: true, displayModeBar: false },
  async draw(node) {
    const { figure, name } = read(node.dataset.chart);
    const dark = Theme.isDark();
    const { data, layout, frames } = Theme.recolour(figure, false, dark);
    const menus = layout.updatemenus ?? [];
    if (menus.length > 1 && node.clientWidth < 560) { /* beside each other they would overlap */
      menus[1] = { ...menus[1], x: 0, xanchor: "left", pad: { b: 46 } };
      layout.margin = { ...layout.margin, t: layout.margin.t + 42 };
    }
    if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false; /* a finger scrolls the page */
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) delete layout.transition;
    await Plotly.newPlot(node, { data, layout, frames, config: this.config });
    this.addKeyboard(node, layout);
    this.drawn.push({ node, name, dark });
  },
  /* Menus and sliders inside a figure answer the mouse only: the same as controls that a key reaches, shown when it does. */
  addKeyboard(node, layout) {
    const apply = ({ method, args }) => Plotly[method]?.(node, ...args);
    const choices = (entries, choose, current, name) => {
      const select = make("select", {}, ...entries.map(({ label }, place) => make("option", { value: place }, label)));
      select.value = String(current ?? 0);
      select.addEventListener("change", () => choose(Number(select.value)));
      return make("label", {}, `${name} `, select);
    };
    const controls = [
      ...(layout.updatemenus ?? []).map((menu, number) => choices(menu.buttons, (place) => {
        apply(menu.buttons[place]);
        Plotly.relayout(node, { [`updatemenus[${number}].active`]: place });
      }, menu.active, "Show")),
      ...(layout.sliders ?? []).map((slider, number) => choices(slider.steps, (place) => {
        apply(slider.steps[place]);
        Plotly.relayout(node, { [`sliders[${number}].active`]: place });
      }, slider.active, slider.currentvalue?.prefix ?? "Show")),
    ];
    if (controls.length) node.parentElement.before(make("div", { class: "keyboard" }, ...controls));
  },
  async drawAll() {
    for (const node of document.querySelectorAll(".plot[data-chart]")) {
      await this.draw(node);
      await new Promise((resolve) => setTimeout(resolve));
    }
    document.documentElement.dataset.ready = "yes";
  },
  async recolour() {
    const dark = Theme.isDark();
    for (const chart of this.drawn) {
      if (chart.dark === dark) continue;
      const { data, layout } = chart.node;
      await Plotly.react(chart.node, Theme.recolour(data, chart.dark, dark), Theme.recolour(layout, chart.dark, dark));
      chart.dark = dark;
    }
  },
  save(figure, format) {
    const node = figure.querySelector(".plot");
    const { name, csv } = read(node.dataset.chart);
    if (format !== "csv") {
      Plotly.downloadImage(node, { format, filename: name, width: node.clientWidth, height: node.clientHeight, scale: 2 });
      return;
    }
    save(`${name}.csv`, csv);
  },
};

function save(filename, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  link.download = filename;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/* An element with text and attributes: text only, whatever it holds. */
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== undefined) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/* Tables whose heads sort them: by data-key where a cell has one, else by its text; numbers as numbers. */
document.addEventListener("click", (event) => {
  const head = event.target.closest?.("table.sortable th");
  if (!head) return;
  const descending = head.getAttribute("aria-sort") !== "descending";
  const place = [...head.parentNode.children].indexOf(head);
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const key = (row) => row.children[place].dataset.key ?? row.children[place].textContent;
  const isNumber = (text) => text !== "" && !Number.isNaN(Number(text));
  const compare = (a, b) => (isNumber(a) && isNumber(b) ? a - b : a.localeCompare(b));
  const body = head.closest("table").tBodies[0];
  body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b)) * (descending ? -1 : 1)));
});

const chosenTheme = Theme.stored();
if (chosenTheme === "light" || chosenTheme === "dark") document.documentElement.dataset.theme = chosenTheme;
document.getElementById("theme").addEventListener("click", () => {
  Theme.choose(Theme.isDark() ? "light" : "dark");
  Charts.recolour();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => Charts.recolour());
for (const button of document.querySelectorAll("[data-save]")) {
  button.addEventListener("click", () => Charts.save(button.closest("figure"), button.dataset.save));
}
document.documentElement.dataset.interactive = "yes";
/* After the first paint, so that the page can be read and used at once. */
setTimeout(() => Charts.drawAll());
