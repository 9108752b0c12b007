"use strict";
const at = id => document.getElementById(id);
const token = new URLSearchParams(location.hash.slice(1)).get("token") || sessionStorage.getItem("token");
if (token) sessionStorage.setItem("token", token);
if (location.hash) history.replaceState(null, "", location.pathname);
const headers = token ? { Authorization: `Bearer ${token}` } : {};
let about = null, maps = null, chosen = null, newest = 0, latest = null;

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  } catch {
    throw new Error("The server does not answer.");
  }
  let found = {};
  try { found = await answer.json(); } catch { /* not ours */ }
  if (answer.status === 401) throw new Error("This page needs the address with the token that the server printed.");
  if (!answer.ok) throw new Error(found.error || `The server answers ${answer.status}.`);
  return found;
}

function bytes(text) { return Uint8Array.from(atob(text), c => c.charCodeAt(0)); }

async function show(file) {
  const mine = ++newest;
  latest = file;
  at("error").textContent = "";
  if (about && file.size > about.max_bytes) { fail(`The photograph has more than ${about.max_bytes.toLocaleString("en")} bytes.`); return; }
  at("status").textContent = "Computing …";
  try {
    const texts = about && about.texts ? at("texts").value.split(",").map(text => text.trim()).filter(Boolean) : [];
    const query = new URLSearchParams([["top", 5], ["attention", 1], ["neighbours", 8], ...texts.map(text => ["text", text])]);
    const found = await ask(`api/predict?${query}`,
      { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
    if (mine !== newest) return;
    draw(found);
    const [first] = table(found).rows;
    const best = first ? `: ${first.name}, ${first.text}` : ".";
    at("status").textContent = `Done${best}`;
  } catch (error) {
    if (mine === newest) fail(error.message);
  }
}

function fail(text) { at("status").textContent = ""; at("error").textContent = text; at("result").hidden = true; }
function percent(share) { return `${(100 * share).toFixed(1)} %`; }

// The rows of the table: classes, labels that were typed, parts of the image, boxes or numbers, the first kind that is there.
function table(found) {
  const shares = (items, key) => items.map(item => ({ name: item.label, text: percent(item[key]), share: item[key], colour: item.colour }));
  if (found.texts) return { title: "Labels", head: "probability", rows: shares([...found.texts].sort((a, b) => b.probability - a.probability), "probability") };
  if (found.segments) return { title: "Parts of the image", head: "share", rows: shares(found.segments, "share") };
  if (found.boxes) return { title: found.boxes.length ? "Boxes" : "No box found", head: "score", rows: shares(found.boxes, "score") };
  if (found.classes) return { title: "Classes", head: "probability", rows: shares(found.classes, "probability") };
  const values = found.numbers ? [{ name: "least", value: found.numbers.least }, { name: "most", value: found.numbers.most }] : found.values || [];
  return { title: "Numbers", head: "value", rows: values.map(v => ({ name: v.name, text: v.value.toPrecision(5), share: null })) };
}

function draw(found) {
  at("result").hidden = false;
  at("photo").src = found.image;
  at("photo").classList.toggle("large", about !== null && about.image_shape[1] >= 128);
  maps = null; chosen = null;
  if (found.attention) {
    const [rows, columns] = found.attention.grid;
    maps = { rows, columns, head: bytes(found.attention.head), patches: bytes(found.attention.patches) };
  }
  at("seen-help").textContent = maps ? "Hover over a patch, or move with the arrow keys, to see what it attends to in the last block. Escape shows what the model reads." : "This model has no attention to show.";
  paint();
  at("overlay-section").hidden = !found.overlay;
  if (found.overlay) at("overlay").src = found.overlay;
  const { title, head, rows } = table(found);
  at("classes-section").hidden = !rows.length && !found.boxes;
  at("classes-title").textContent = title;
  at("share-title").textContent = head;
  at("classes").replaceChildren(...rows.map(({ name, text, share, colour }) => {
    const row = document.createElement("tr"), value = document.createElement("td"), cell = row.insertCell();
    if (colour) {
      const swatch = document.createElement("span");
      swatch.className = "swatch"; swatch.style.background = colour; swatch.setAttribute("aria-hidden", "true"); cell.append(swatch);
    }
    cell.append(name);
    if (share !== null) {
      const bar = document.createElement("progress");
      bar.value = share; bar.setAttribute("aria-hidden", "true"); value.append(bar);
    }
    value.append(text); row.append(value);
    return row;
  }));
  at("neighbours-section").hidden = !(found.neighbours || []).length;
  at("neighbours").replaceChildren(...(found.neighbours || []).map(n => {
    const item = document.createElement("li"), figure = document.createElement("figure"), caption = document.createElement("figcaption");
    if (n.thumbnail) { const image = document.createElement("img"); image.src = n.thumbnail; image.alt = n.name; figure.append(image); }
    caption.textContent = `${n.cosine.toFixed(3)} ${n.name}`;
    figure.append(caption); item.append(figure);
    return item;
  }));
}

function paint() {
  const canvas = at("map");
  if (!maps) { canvas.width = canvas.height = 1; at("patch").textContent = ""; return; }
  const { rows, columns } = maps, count = rows * columns;
  canvas.width = columns; canvas.height = rows;
  const levels = chosen === null ? maps.head : maps.patches.subarray(chosen * count, (chosen + 1) * count);
  const picture = canvas.getContext("2d").createImageData(columns, rows);
  for (let i = 0; i < count; i++) picture.data.set(i === chosen ? [255, 255, 255, 230] : [255, 140, 0, Math.round(levels[i] * 0.75)], 4 * i);
  canvas.getContext("2d").putImageData(picture, 0, 0);
  at("patch").textContent = chosen === null ? "What the model reads."
    : `Row ${Math.floor(chosen / columns) + 1}, column ${chosen % columns + 1}: attends most to row ${Math.floor(strongest(levels) / columns) + 1}, column ${strongest(levels) % columns + 1}.`;
}

function strongest(levels) { return levels.indexOf(Math.max(...levels)); }
function choose(patch) { if (maps && patch !== chosen) { chosen = patch; paint(); } }

function point(event) {
  if (!maps) return;
  const box = at("map").getBoundingClientRect();
  const column = Math.floor((event.clientX - box.x) / box.width * maps.columns), row = Math.floor((event.clientY - box.y) / box.height * maps.rows);
  if (row >= 0 && column >= 0 && row < maps.rows && column < maps.columns) choose(row * maps.columns + column);
}
at("seen").addEventListener("pointermove", point);
at("seen").addEventListener("pointerdown", point);
at("seen").addEventListener("pointerleave", event => { if (event.pointerType === "mouse") choose(null); });
at("seen").addEventListener("keydown", event => {
  if (!maps) return;
  if (event.key === "Escape") { choose(null); return; }
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!step) return;
  event.preventDefault();
  const row = chosen === null ? 0 : Math.floor(chosen / maps.columns) + step[0], column = chosen === null ? 0 : chosen % maps.columns + step[1];
  if (row >= 0 && column >= 0 && row < maps.rows && column < maps.columns) choose(row * maps.columns + column);
});
at("file").addEventListener("change", () => { if (at("file").files.length) show(at("file").files[0]); at("file").value = ""; });
at("texts").addEventListener("change", () => { if (latest) show(latest); });
at("form").addEventListener("submit", event => event.preventDefault());
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, event => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) show(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", event => { if (event.clipboardData.files.length) show(event.clipboardData.files[0]); });
ask("api/info").then(found => {
  about = found;
  at("texts-line").hidden = !found.texts;
  const kind = found.texts ? "compares photographs with labels" : `${found.classes.toLocaleString("en")} classes`;
  at("model").textContent = `${found.model}: ${kind}` + (found.index ? `, ${found.index.toLocaleString("en")} pictures to compare with` : "");
}).catch(error => fail(error.message));
