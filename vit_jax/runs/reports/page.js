// The tables, the selection of runs, and their curves. Text from runs is only ever set as textContent.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const COLORS = ["#2f7fd0", "#e07b28", "#3a9b4b", "#d0453f", "#8e63c4", "#a06a4f", "#d862a8", "#7d8791", "#a5a11f", "#18a5b8"];
const DASHES = [[], [7, 3], [2, 2], [9, 3, 2, 3]];
const KEY = "vit_jax report " + location.pathname;

const grouped = data.groups.length < data.runs.length;
const state = {chosen: null, metrics: data.panels, smoothing: 0, log: false, means: false, filter: "", sort: {}};
try {
  Object.assign(state, JSON.parse(sessionStorage.getItem(KEY) ?? "{}"));  // survives the reload of --watch
} catch { /* no storage: start with the defaults */ }
const byName = new Map(data.runs.map((run, index) => [run.name, index]));
const best = data.best.slice(0, 10);
const chosen = new Set(state.chosen?.filter(name => byName.has(name)).map(name => byName.get(name)) ?? (data.runs.length <= 24 ? data.best : best));
const panels = new Map(), boxes = [], rows = [];
// Drawn runs keep their index in the colour cycle while they are selected; runs that differ only in seeds share one.
const places = new Map(), swatches = [];
const styleOf = index => grouped ? data.runs[index].group : index;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function remember() {
  state.chosen = [...chosen].map(index => data.runs[index].name);
  try { sessionStorage.setItem(KEY, JSON.stringify(state)); } catch { /* see above */ }
}

function text(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : short(value);
  return typeof value === "string" ? value : JSON.stringify(value);
}

// Missing values are sorted last in both directions.
function compare(a, b, sign) {
  if (a === null || b === null || a === undefined || b === undefined) return (a ?? null) === (b ?? null) ? 0 : (a ?? null) === null ? 1 : -1;
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * text(a).localeCompare(text(b), "en", {numeric: true});
}

// Fills a table with columns {name, of: line => value, show?: line => text or element, wide?}; a click on a header sorts by it.
function fill(table, id, columns, lines, first, row = () => make("tr")) {
  const body = make("tbody"), head = make("tr"), order = lines.map((line, index) => ({line, index}));
  const made = lines.map(line => {
    const element = row(line);
    for (const column of columns) {
      const value = column.of(line);
      const shown = column.show ? column.show(line) : text(value);
      const cell = make("td", {className: column.wide && text(value).length > 60 ? "wide" : typeof value === "number" ? "number" : ""}, shown);
      element.append(cell);
    }
    return element;
  });
  const sort = (name, down) => {
    const index = columns.findIndex(column => column.name === name), column = columns[index];
    if (!column) return;
    order.sort((a, b) => compare(column.of(a.line), column.of(b.line), down ? -1 : 1) || a.index - b.index);
    body.append(...order.map(one => made[one.index]));
    [...head.children].forEach((cell, at) => cell.setAttribute("aria-sort", at !== index ? "none" : down ? "descending" : "ascending"));
    state.sort[id] = [name, down];
  };
  columns.forEach((column, index) => {
    const button = make("button", {type: "button", textContent: column.name, title: column.title ?? ""});
    const numeric = lines.some(line => typeof column.of(line) === "number");
    const cell = make("th", {scope: "col", className: numeric ? "number" : ""}, button);
    button.addEventListener("click", () => {
      const current = cell.getAttribute("aria-sort");
      sort(column.name, current === "ascending" || (current === "none" && numeric && column.down !== false));
      remember();
    });
    head.append(cell);
  });
  table.replaceChildren(make("thead", {}, head), body);
  body.append(...made);
  sort(...(state.sort[id] ?? first));
  return made;
}

function place() {
  const wanted = new Set([...chosen].sort((a, b) => a - b).map(styleOf));
  for (const key of [...places.keys()]) if (!wanted.has(key)) places.delete(key);
  const taken = new Set(places.values());
  let free = 0;
  for (const key of wanted) {
    if (places.has(key)) continue;
    while (taken.has(free)) free++;
    places.set(key, free++);
  }
}

function style(key) {
  const at = places.get(key);
  return {color: COLORS[at % COLORS.length], dash: DASHES[Math.floor(at / COLORS.length) % DASHES.length]};
}

function swatch(key) {
  const element = make("span", {className: "swatch"});
  if (places.has(key)) {
    const {color, dash} = style(key);
    element.style.borderTop = `3px ${dash.length ? dash[0] > 3 ? "dashed" : "dotted" : "solid"} ${color}`;
  }
  return element;
}

// A swatch in a table, updated with the selection.
function keptSwatch(key) {
  const element = swatch(key);
  swatches.push([key, element]);
  return element;
}

// An accuracy is a fraction in the data and shown in percent, as in the terminal.
const fixed = value => value === null ? "" : data.is_rate ? `${(100 * value).toFixed(2)} %` : value === 0 || Math.abs(value) >= 0.001 ? value.toFixed(4) : short(value);

function showRuns() {
  const columns = [
    {name: "run", of: run => run.name, wide: true, show: run => {
      const index = byName.get(run.name);
      const box = make("input", {type: "checkbox", checked: chosen.has(index), ariaLabel: `draw ${run.name}`});
      boxes[index] = box;
      box.addEventListener("change", () => choose(index, box.checked));
      return make("span", {title: run.path}, box, " ", keptSwatch(styleOf(index)), run.name);
    }},
    {name: "state", of: run => run.state},
    ...data.keys.map((key, at) => ({name: data.short[at], title: key, of: run => run.settings[at], wide: true, down: false})),
    {name: "seed", of: run => run.seed, down: false},
    {name: `last ${data.metric}`, of: run => run.last, show: run => fixed(run.last)},
    {name: `best ${data.metric}`, of: run => run.best, show: run => fixed(run.best)},
    {name: "at step", of: run => run.best_step},
    {name: "time", of: run => run.hours, show: run => run.time},
    {name: "hardware", of: run => run.hardware},
    {name: "commit", of: run => run.commit},
  ];
  const made = fill($("runs").querySelector("table"), "runs", columns, data.runs, [`last ${data.metric}`, data.mode === "max"], () => make("tr", {className: "pick"}));
  data.runs.forEach((run, index) => {
    const words = [run.name, run.finished ? "finished" : `unfinished ${run.state}`, ...data.keys.map((key, at) => `${key}=${text(run.settings[at])}`)];
    rows[index] = {element: made[index], words: `${words.join("\n")}\nseed=${text(run.seed)}\n${run.hardware}\n${run.commit}`.toLowerCase()};
    made[index].addEventListener("click", event => { if (event.target !== boxes[index]) choose(index, !chosen.has(index)); });
  });
}

function choose(index, on) {
  if (on) chosen.add(index); else chosen.delete(index);
  refresh();
}

function filter() {
  state.filter = $("filter").value;
  const wanted = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const {element, words} of rows) {
    element.hidden = !wanted.every(word => words.includes(word));
    count += !element.hidden;
  }
  $("count").textContent = `${count.toLocaleString("en")} of ${data.runs.length.toLocaleString("en")}`;
  remember();
}

function decoded(curve) {
  if (!curve.decoded) {
    let step = 0;
    curve.decoded = {steps: curve[0].map(more => step += more), values: curve[1]};
  }
  return curve.decoded;
}

// The curves of the selected runs in a panel, with the colours of the tables.
function seriesOf(metric) {
  const found = [], at = data.metrics.indexOf(metric);
  const groups = new Map();
  for (const index of [...chosen].sort((a, b) => a - b)) {
    if (!data.curves[index][at]) continue;
    const {steps, values} = decoded(data.curves[index][at]);
    const shown = state.smoothing ? smoothed(values, state.smoothing) : values;
    const one = {name: data.runs[index].name, steps, values: shown, smooth: state.smoothing > 0, faint: state.smoothing ? values : undefined, ...style(styleOf(index))};
    found.push(one);
    const {group} = data.runs[index];
    groups.set(group, [...groups.get(group) ?? [], one]);
  }
  if (!state.means || !grouped) return found;
  return [...groups].map(([group, curves]) => curves.length === 1 ? curves[0] : {
    name: `${data.groups[group].name}, mean of ${curves.length}`, smooth: state.smoothing > 0, ...averaged(curves), ...style(group),
  }).filter(one => one.steps.length);
}

function refresh() {
  place();
  for (const [key, element] of swatches) element.style.cssText = swatch(key).style.cssText;
  data.runs.forEach((run, index) => {
    boxes[index].checked = chosen.has(index);
    rows[index].element.classList.toggle("chosen", chosen.has(index));
  });
  for (const button of $("metrics").children) {
    const metric = button.textContent, on = state.metrics.includes(metric);
    button.setAttribute("aria-pressed", on);
    if (on && !panels.has(metric)) panels.set(metric, new Panel(metric, $("tooltip")));
    if (!on && panels.has(metric)) { panels.get(metric).figure.remove(); panels.delete(metric); }
  }
  for (const metric of data.metrics) if (panels.has(metric) && !panels.get(metric).figure.isConnected) $("panels").append(panels.get(metric).figure);
  for (const [metric, panel] of panels) panel.show(seriesOf(metric), state.log);
  const lines = new Map([...chosen].sort((a, b) => a - b).map(index => [styleOf(index), grouped ? data.groups[data.runs[index].group].name : data.runs[index].name]));
  const items = [...lines].slice(0, 16).map(([index, name]) => make("li", {}, swatch(index), name));
  if (lines.size > 16) items.push(make("li", {className: "note", textContent: `and ${lines.size - 16} more`}));
  $("legend").replaceChildren(...items, make("li", {className: "note", textContent: `${chosen.size} of ${data.runs.length} runs are drawn; select them in the table below`}));
  remember();
}

function showGroups() {
  if (!grouped) return;
  $("groups").hidden = false;
  const ends = data.groups.filter(group => group.n).flatMap(({mean, spread}) => [mean - (spread ?? 0), mean + (spread ?? 0)]);
  const low = Math.min(...ends), span = Math.max(...ends) - low || 1, at = value => `${100 * (value - low) / span}%`;
  const picture = ({n, mean, spread}) => {
    const range = make("div", {className: "range"});
    if (!n) return range;
    const bar = make("i"), dot = make("b");
    bar.style.left = at(mean - (spread ?? 0));
    bar.style.width = `${100 * 2 * (spread ?? 0) / span}%`;
    dot.style.left = at(mean);
    range.append(bar, dot);
    return range;
  };
  const columns = [
    {name: "settings", of: group => group.name, wide: true, show: group => make("span", {}, keptSwatch(data.groups.indexOf(group)), group.name)},
    {name: `mean ${data.metric}`, of: group => group.mean, show: group => fixed(group.mean)},
    {name: "± deviation", of: group => group.spread, show: group => fixed(group.spread)},
    {name: "± 95 % of the mean", of: group => group.confidence, show: group => fixed(group.confidence)},
    {name: "finished", of: group => group.n},
    {name: "runs", of: group => group.runs.length},
    {name: "mean ± deviation, plot", of: group => group.mean, show: picture},
  ];
  const made = fill($("groups").querySelector("table"), "groups", columns, data.groups, [`mean ${data.metric}`, data.mode === "max"], () => make("tr", {className: "pick", title: "show or hide these runs"}));
  made.forEach((row, index) => row.addEventListener("click", () => {
    const {runs} = data.groups[index], on = !runs.every(run => chosen.has(run));
    for (const run of runs) if (on) chosen.add(run); else chosen.delete(run);
    refresh();
  }));
}

function showPaper() {
  if (!data.paper) return;
  $("paper").hidden = false;
  $("paper").querySelector("h2").textContent = data.paper.title;
  // Numbers, including those with a spread, are sorted and aligned as numbers.
  const value = cell => cell === "" ? null : /^[+-]?\d+(\.\d+)?( ± .*)?$/.test(cell) ? parseFloat(cell) : cell;
  const columns = data.paper.head.map((name, at) => ({name, of: cells => value(cells[at]), show: cells => cells[at], wide: true}));
  fill($("paper").querySelector("table"), "paper", columns, data.paper.lines, ["", false]);
}

function begin() {
  document.title = `Report: ${data.title}`;
  $("summary").textContent = `${data.title}; compared by ${data.metric}, ${data.better}; written ${data.written}`;
  $("broken").hidden = !data.broken.length;
  $("broken").replaceChildren(...data.broken.map(reason => make("li", {textContent: `Left out: ${reason}`})));
  $("thinned").textContent = data.thinned;
  $("averaging").hidden = !grouped;
  state.metrics = state.metrics.filter(metric => data.metrics.includes(metric));
  $("metrics").replaceChildren(...data.metrics.map(metric => {
    const button = make("button", {type: "button", textContent: metric});
    button.addEventListener("click", () => {
      state.metrics = state.metrics.includes(metric) ? state.metrics.filter(other => other !== metric) : [...state.metrics, metric];
      refresh();
    });
    return button;
  }));
  showPaper();
  showRuns();
  showGroups();
  for (const [id, key, property] of [["smoothing", "smoothing", "valueAsNumber"], ["log", "log", "checked"], ["means", "means", "checked"]]) {
    $(id)[property] = state[key];
    $(id).addEventListener("input", () => { state[key] = $(id)[property]; refresh(); });
  }
  $("filter").value = state.filter;
  $("filter").addEventListener("input", filter);
  const all = {"choose-best": () => best, "choose-shown": () => data.best.filter(index => !rows[index].element.hidden), "choose-none": () => []};
  for (const [id, which] of Object.entries(all)) $(id).addEventListener("click", () => {
    chosen.clear();
    for (const index of which()) chosen.add(index);
    refresh();
  });
  filter();
  refresh();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
  if (data.refresh) setTimeout(() => location.reload(), 1000 * data.refresh);
}

begin();
