// The grid of the Sweep tab: it puts in the cells that changed, knows which two are A and B, and how the grid is looked at.
// Everything else works in the page alone, without a round trip, so it is at hand while a sweep still runs; a picture in
// full is the viewer's affair, zooming zoom.js's. Continues page.js: `element`, `props`, `watch`, `say`. live_grid.py makes
// the value. Which cells are A and B is told to Python, for Refine; the run on the page is told to the address bar.

const byId = (id) => document.getElementById(id);
const OURS = new Set(["tabindex", "aria-pressed", "data-side"]); // what this script says of a cell
const drawn = { table: null, cells: {} };
const state = { run: null, a: null, b: null, next: "a", chosen: false, focus: "0", came: false, told: "", keys: {} };
const away = { column: new Set(), row: new Set() }; // strengths and rows that are hidden, in their own words
const KEPT = "klein-grid"; // how the grid is looked at, in this browser
const look = { size: 0, score: "evidence", ...read(KEPT) }; // px of a picture's width, 0 as many as fit

const table = () => element.querySelector("table");
const cells = () => [...element.querySelectorAll("button.cell")];
const done = () => cells().filter((cell) => cell.classList.contains("done") && isShown(cell));
const isShown = (cell) => !cell.closest("[hidden]");
const tool = (name) => element.querySelector(`[data-tool="${name}"]`);
const headOf = (cell) => element.querySelectorAll(".strengths th")[cell.parentElement.cellIndex];
const positionOf = (cell) => cell.parentElement.dataset.position;
const whereOf = (cell) => cell.closest("tbody").dataset.where;
const cellAt = (position) => element.querySelector(`td[data-position="${Number(position)}"] > button.cell`);

function refresh() {
  const value = props.value;
  const isNew = value.table !== drawn.table;
  if (isNew) {
    element.querySelector(".grid-scroll").innerHTML = value.table;
    Object.assign(drawn, { table: value.table, cells: {} });
  }
  let changed = 0;
  for (const place of element.querySelectorAll("td[data-position]")) {
    const html = value.cells[place.dataset.position];
    if (html === undefined || html === drawn.cells[place.dataset.position]) continue;
    renew(place, html);
    changed += 1;
  }
  drawn.cells = { ...drawn.cells, ...value.cells };
  if (table().dataset.run) table().setAttribute("aria-busy", String(value.busy));
  for (const [column, head] of element.querySelectorAll(".strengths th").entries()) {
    head.classList.toggle("advised", value.advised.includes(column));
  }
  noteRun(table().dataset.run || null);
  if (isNew) {
    hide();
    resize();
  }
  if (isNew || changed) markFocus();
  showSoon();
}

// A grid that fills changes many times a second; what follows from all of its cells is worked out twice a second.
let soon = 0;
function showSoon() {
  if (!props.value.busy) return void (clearTimeout(soon), (soon = 0), settle());
  soon ||= setTimeout(() => ((soon = 0), settle()), 500);
}

function settle() {
  paint();
  if (!state.chosen && done().length > 1) [state.a, state.b] = proposePair().map(positionOf);
  show();
}

// The button stays, and with it the focus and what this script says of it.
function renew(place, html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  const [old, fresh] = [place.firstElementChild, template.content.firstElementChild];
  if (!old || old.tagName !== fresh.tagName) return void place.replaceChildren(template.content);
  for (const { name } of [...old.attributes]) if (!OURS.has(name) && !fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) old.setAttribute(name, value);
  old.replaceChildren(...fresh.childNodes);
  fresh.remove();
  while (old.nextSibling) old.nextSibling.remove();
  old.after(template.content);
}

// Another run: A and B stay with their row and strength, which stand elsewhere in a grid that got more strengths.
function noteRun(run) {
  if (run === state.run) return;
  const find = (key) => (key && cells().find((cell) => keyOf(cell) === key)) || null;
  const [a, b] = [find(state.keys.a), find(state.keys.b)];
  const chosen = Boolean(state.chosen && a && b);
  Object.assign(state, { run, a: chosen ? positionOf(a) : null, b: chosen ? positionOf(b) : null, next: "a", chosen, focus: "0", came: false, told: "" });
  // The address of the page opens its run again. On Spaces the page is a frame, and the address bar that of its parent.
  const url = new URL(location.href);
  if (!run || url.searchParams.get("sweep") === run) return;
  const step = url.searchParams.has("sweep") ? "pushState" : "replaceState"; // Back leads to the run before
  url.searchParams.set("sweep", run);
  history[step](history.state, "", url);
  if (window.parent !== window) {
    window.parent.postMessage({ queryString: url.searchParams.toString(), hash: "" }, "https://huggingface.co");
  }
}

function keyOf(cell) {
  return `${whereOf(cell)} ${cell.dataset.strength}`;
}

// Until a person chooses, two pictures that differ in their strength alone: of the advised row, else the first that has
// two, the highest advised strength and the next one, where it goes wrong; else the base image and the highest.
function proposePair() {
  const rows = [...table().tBodies].map((body) => done().filter((cell) => cell.closest("tbody") === body));
  const advised = rows.find((each) => each.some((cell) => positionOf(cell) === props.value.best));
  const row = [advised, ...rows].find((each) => each?.length > 1) ?? done();
  const columns = new Map(row.map((cell) => [cell.parentElement.cellIndex, cell]));
  const last = Math.max(-1, ...props.value.advised);
  const [top, beyond] = [columns.get(last), columns.get(last + 1)];
  if (top && beyond) return [top, beyond];
  return [row[0], top && top !== row[0] ? top : row[row.length - 1]];
}

// Mark A and B, and show them in the panel below.
function show() {
  const panel = byId("compare");
  if (!panel) return;
  panel.hidden = done().length < 2;
  for (const cell of cells()) {
    const side = { [state.a]: "A", [state.b]: "B" }[positionOf(cell)];
    if (cell.classList.contains("done")) cell.setAttribute("aria-pressed", String(Boolean(side) && !panel.hidden));
    if (side && !panel.hidden) cell.dataset.side = side;
    else delete cell.dataset.side;
  }
  if (panel.hidden) return;
  kleinViewer.show(panel, { items: items(), a: state.a, b: state.b, picked: (a, b) => choose({ a, b }) });
  const [a, b] = [cellAt(state.a), cellAt(state.b)];
  state.keys = { a: a ? keyOf(a) : "", b: b ? keyOf(b) : "" };
  tellChosen();
}

function items() {
  const shape = table().style.getPropertyValue("--shape");
  const bodies = [...table().tBodies];
  return done().map((cell) => {
    const [image, where] = [cell.querySelector("img"), whereOf(cell)];
    return {
      id: positionOf(cell), src: image.getAttribute("src"), alt: image.alt, shape, where, rating: cell.dataset.rating,
      title: `Strength ${cell.dataset.strength}`, row: bodies.indexOf(cell.closest("tbody")), column: cell.parentElement.cellIndex,
      label: `${cell.dataset.strength} · ${where.length > 40 ? `${where.slice(0, 39)}…` : where}`,
    };
  });
}

function choose(sides) {
  Object.assign(state, sides, { chosen: true });
  show();
}

// Once a choice, and not while the grid fills: what can be refined is known at its end.
function tellChosen() {
  const told = `${state.run} ${state.a} ${state.b}`;
  if (!state.run || props.value.busy || told === state.told) return;
  state.told = told;
  say("choose", "", [state.a, state.b], "select");
}

// At the cell that a person was at; else at the one that is advised.
function openViewer() {
  const all = items();
  const at = (state.came && all.find((item) => item.id === state.focus)) || all.find((item) => item.id === props.value.best) || all[0];
  if (!at) return;
  const base = all.find((item) => item.row === at.row && item.column === 0 && item !== at);
  kleinViewer.open({
    items: all, a: at.id, b: base?.id ?? state.b,
    rate: mayRate() ? rate : null,
    closed: (id) => cellAt(id) && focusCell(cellAt(id)),
  });
}

const mayRate = () => table().dataset.own === "true";

function rate(position, rating) {
  const cell = cellAt(position);
  cell.dataset.rating = rating;
  showStars();
  cell.parentElement.querySelector(".stars").textContent = rating ? `★ ${rating}` : "";
  say("rate", position, rating, "submit");
}

/* One cell is in the tab order; arrow keys go to the others. */
function markFocus() {
  const at = cellAt(state.focus);
  if (!at || !isShown(at)) {
    const first = cells().find(isShown);
    state.focus = first ? positionOf(first) : "0";
  }
  for (const cell of cells()) cell.tabIndex = positionOf(cell) === state.focus ? 0 : -1;
}

function focusCell(cell) {
  Object.assign(state, { focus: positionOf(cell), came: true });
  markFocus();
  cell.focus();
  cell.scrollIntoView({ block: "nearest", inline: "nearest" });
}

/* Arrows go to the next cell that is shown. */
function step(cell, key) {
  const rows = [...element.querySelectorAll("tr.cells")].filter(isShown).map((row) => [...row.querySelectorAll("button.cell")].filter(isShown));
  const row = rows.findIndex((each) => each.includes(cell));
  const column = rows[row].indexOf(cell);
  const below = (along) => rows[row + along]?.find((each) => each.parentElement.cellIndex >= cell.parentElement.cellIndex);
  return {
    ArrowLeft: () => rows[row][column - 1], ArrowRight: () => rows[row][column + 1], ArrowUp: () => below(-1), ArrowDown: () => below(1),
    Home: () => rows[row][0], End: () => rows[row].at(-1),
  }[key]();
}

element.addEventListener("keydown", (event) => {
  const cell = event.target.closest("button.cell");
  if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target) || !element.contains(event.target)) return;
  if (kleinZoom.key(surface, event) || !cell) return;
  if (/^(Arrow(Left|Right|Up|Down)|Home|End)$/.test(event.key)) {
    event.preventDefault();
    const to = step(cell, event.key);
    if (to) focusCell(to);
  } else if (/^[1-5]$/.test(event.key)) rateOrNot(cell, Number(event.key));
  else if (/^[hr]$/i.test(event.key)) putAway(event.key.toLowerCase() === "h" ? "column" : "row", cell);
});

element.addEventListener("focusin", (event) => {
  if (!event.target.matches("button.cell")) return;
  Object.assign(state, { focus: positionOf(event.target), came: true });
  offerStars(event.target);
});
element.addEventListener("pointerover", (event) => {
  const cell = event.pointerType !== "touch" && event.target.closest("td[data-position]")?.querySelector("button.cell");
  if (cell) offerStars(cell);
});

element.addEventListener("click", (event) => {
  const star = event.target.closest("[data-stars]");
  if (star) return void rateOrNot(star.closest("td").querySelector("button.cell"), Number(star.dataset.stars));
  const hider = event.target.closest("[data-hide]");
  if (hider) return void putAway(hider.dataset.hide, hider.closest("tbody, th"));
  const shower = event.target.closest("[data-show]");
  if (shower) return void bringBack(shower);
  const chosen = event.target.closest("[data-tool]")?.dataset.tool;
  if (chosen === "fit" || chosen === "actual") return void setSize(chosen === "fit" ? 0 : actualSize());
  const cell = event.target.closest("button.cell");
  if (!cell) return;
  Object.assign(state, { focus: positionOf(cell), came: true });
  markFocus();
  if (!cell.classList.contains("done")) return;
  const side = state.next;
  state.next = side === "a" ? "b" : "a";
  choose({ [side]: positionOf(cell) });
});

/* How large, and what stands below */
function read(name) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? {};
  } catch {
    return {}; // storage that is closed to us, or holds what is none of ours
  }
}

function keepLook() {
  try {
    localStorage.setItem(KEPT, JSON.stringify(look));
  } catch {
    // A browser that keeps nothing for us looks the same the next time as now: as many as fit.
  }
}

const actualSize = () => Math.round(Number(element.querySelector(".cell.done img")?.getAttribute("width") ?? 512) / window.devicePixelRatio);

function setSize(size) {
  look.size = size;
  keepLook();
  resize();
}

function resize() {
  const scroll = element.querySelector(".grid-scroll");
  const sized = Number.isFinite(look.size) && look.size > 0;
  scroll.classList.toggle("sized", sized);
  scroll.style.setProperty("--cell", `${look.size}px`);
  const width = sized ? look.size : element.querySelector("td:not([hidden])")?.clientWidth;
  if (width) tool("size").value = String(Math.round(width));
  // A grid takes the whole width of the screen; a form is read more easily when it is narrow.
  element.closest(".gradio-container > .main")?.classList.toggle("wide", Boolean(table()?.dataset.run) && element.offsetParent !== null);
}

// What stands below each picture: in words, and as a colour between the lowest and the highest on the page.
function paint() {
  const found = done().map((cell) => [cell, JSON.parse(cell.dataset.measured ?? "{}")[look.score]]);
  const numbers = found.map(([, measured]) => measured?.[1]).filter(Number.isFinite);
  const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
  for (const [cell, measured] of found) {
    const told = cell.parentElement.querySelector(".told");
    const [words, value] = measured ?? ["\u00a0", null];
    if (told.textContent !== words) told.textContent = words;
    const heat = Number.isFinite(value) && high > low ? (value - low) / (high - low) : 0;
    told.style.setProperty("--heat", heat.toFixed(2));
    told.dataset.mark = typeof value === "string" ? value : measured ? "number" : "";
  }
}

/* Rows and columns that are out of the way for now */
function hide() {
  const heads = [...element.querySelectorAll(".strengths th")];
  const gone = heads.map((head) => away.column.has(head.textContent));
  for (const [column, head] of heads.entries()) head.hidden = gone[column];
  for (const body of table().tBodies) {
    body.hidden = away.row.has(body.dataset.where);
    for (const place of body.querySelectorAll("td")) place.hidden = gone[place.cellIndex];
  }
  table().style.setProperty("--columns", String(Math.max(1, gone.filter((each) => !each).length)));
  const list = element.querySelector(".grid-tools .away");
  const there = { column: heads.map((head) => head.textContent), row: [...table().tBodies].map((body) => body.dataset.where) };
  const buttons = Object.keys(away).flatMap((what) => there[what].filter((words) => away[what].has(words)).map((words) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: `Show ${words}` });
    Object.assign(button.dataset, { show: what, which: words });
    return button;
  }));
  list.hidden = !buttons.length;
  list.replaceChildren(...(buttons.length ? ["Hidden: ", ...buttons] : []));
}

// `at` is a cell, or the head of what is put away. The last one stays.
function putAway(what, at) {
  const cell = at.matches("button.cell") ? at : null;
  const words = what === "row" ? at.closest("tbody").dataset.where : (cell ? headOf(cell) : at).textContent;
  const all = what === "row" ? [...table().tBodies] : [...element.querySelectorAll(".strengths th")];
  if (all.filter((each) => !each.hidden).length < 2) return;
  const next = cell && (what === "row" ? step(cell, "ArrowDown") ?? step(cell, "ArrowUp") : step(cell, "ArrowRight") ?? step(cell, "ArrowLeft"));
  away[what].add(words);
  lookAgain();
  if (next) focusCell(next);
}

function bringBack(button) {
  away[button.dataset.show].delete(button.dataset.which);
  lookAgain();
  focusCell(cells().find(isShown));
}

function lookAgain() {
  hide();
  resize();
  markFocus();
  settle();
}

/* Stars over the cell that is looked at: one row of buttons for all cells */
const stars = document.createElement("div");
stars.className = "rater";
stars.setAttribute("role", "group");
stars.setAttribute("aria-label", "Rate this picture");
for (const count of [1, 2, 3, 4, 5]) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: "★", tabIndex: -1 });
  button.dataset.stars = String(count);
  button.setAttribute("aria-label", `${count} of 5`);
  stars.append(button);
}
stars.addEventListener("mousedown", (event) => event.preventDefault()); // the focus stays with the cell

function offerStars(cell) {
  if (!mayRate() || !cell.classList.contains("done")) return void stars.remove();
  if (stars.parentElement !== cell.parentElement) cell.parentElement.append(stars);
  showStars();
}

function showStars() {
  const given = Number(stars.parentElement?.querySelector("button.cell").dataset.rating ?? 0);
  for (const button of stars.children) button.setAttribute("aria-pressed", String(Number(button.dataset.stars) <= given));
}

function rateOrNot(cell, count) {
  if (mayRate() && cell.classList.contains("done")) rate(positionOf(cell), Number(cell.dataset.rating) === count ? 0 : count);
}

const isTyping = (target) =>
  target.closest("input, textarea, select, [contenteditable=true], [role=listbox], [role=combobox]") !== null;

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || element.offsetParent === null || event.key.toLowerCase() !== "f") return;
  if (!document.querySelector("dialog[open]") && !isTyping(event.target)) openViewer();
});

async function copyLink() {
  const copied = await write(location.href);
  byId("copy-said").textContent = copied ? "Link copied." : "The browser does not allow it: copy the address from the address bar.";
  setTimeout(() => { byId("copy-said").textContent = ""; }, 4000);
}

document.addEventListener("click", (event) => {
  if (event.target.closest("#open-viewer")) openViewer();
  else if (event.target.closest("#copy-link")) copyLink();
});

window.addEventListener("popstate", () => {
  const run = new URL(location.href).searchParams.get("sweep");
  if (run && run !== state.run) say("back", run, null, "input");
});

// A link that was opened: on a narrow screen the grid is below the form.
if (new URL(location.href).searchParams.has("sweep")) {
  const opened = new MutationObserver(() => {
    opened.disconnect();
    goTo("sweep-status");
  });
  opened.observe(byId("sweep-status"), { childList: true, subtree: true, characterData: true });
}

const surface = element.querySelector(".closer");
kleinZoom.attach(surface);
tool("size").addEventListener("input", (event) => setSize(Number(event.target.value)));
tool("score").value = look.score;
if (!tool("score").value) tool("score").value = look.score = "evidence";
tool("score").addEventListener("change", (event) => {
  look.score = event.target.value;
  keepLook();
  paint();
});
new ResizeObserver(resize).observe(element);

// The field that an error of the form is about is marked, until it is changed or another event says more.
let marked = null;

function markWrong() {
  const error = byId("sweep-status").querySelector("[data-wrong]");
  if (error === marked) return;
  marked = error;
  const wrong = error?.dataset.wrong;
  for (const field of document.querySelectorAll("#sweep-form [aria-invalid]")) field.removeAttribute("aria-invalid");
  const labels = wrong ? [...document.querySelectorAll("#sweep-form [data-testid=block-info]")] : [];
  const label = labels.find((each) => each.textContent.trim().replace(/ \(.*\)$/, "") === wrong);
  label?.closest(".block")?.querySelector("input, textarea")?.setAttribute("aria-invalid", "true");
}

new MutationObserver(markWrong).observe(byId("sweep-status"), { childList: true, subtree: true });
byId("sweep-form").addEventListener("input", (event) => event.target.removeAttribute("aria-invalid"));

watch("value", refresh);
refresh();
