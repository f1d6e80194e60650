// The grid of the Sweep tab: it puts in the cells that changed, and knows which two are A and B. Everything else works in
// the page alone, without a round trip, so it is at hand while a sweep still runs; the pictures are the viewer's affair.
// Continues page.js: `element`, `props`, `watch`, `say`. live_grid.py makes the value. Which cells are A and B is told to
// Python, for Refine; the run on the page is told to the address bar.

const byId = (id) => document.getElementById(id);
const OURS = new Set(["tabindex", "aria-pressed", "data-side"]); // what this script says of a cell
const drawn = { table: null, cells: {} };
const state = { run: null, a: null, b: null, next: "a", chosen: false, focus: "0", told: "", keys: {} };

const table = () => element.querySelector("table");
const cells = () => [...element.querySelectorAll("button.cell")];
const done = () => cells().filter((cell) => cell.classList.contains("done"));
const positionOf = (cell) => cell.parentElement.dataset.position;
const whereOf = (cell) => cell.closest("tbody").dataset.where;
const cellAt = (position) => element.querySelector(`td[data-position="${Number(position)}"] > button.cell`);

function refresh() {
  const value = props.value;
  if (value.table !== drawn.table) {
    element.querySelector(".grid-scroll").innerHTML = value.table;
    Object.assign(drawn, { table: value.table, cells: {} });
  }
  for (const place of element.querySelectorAll("td[data-position]")) {
    const html = value.cells[place.dataset.position];
    if (html !== undefined && html !== drawn.cells[place.dataset.position]) renew(place, html);
  }
  drawn.cells = { ...drawn.cells, ...value.cells };
  if (table().dataset.run) table().setAttribute("aria-busy", String(value.busy));
  for (const [column, head] of element.querySelectorAll(".strengths th").entries()) {
    head.classList.toggle("advised", value.advised.includes(column));
  }
  noteRun(table().dataset.run || null);
  markFocus();
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
  Object.assign(state, { run, a: chosen ? positionOf(a) : null, b: chosen ? positionOf(b) : null, next: "a", chosen, focus: "0" });
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

// Until a person chooses: the highest advised strength and the next one, where it goes wrong; else the two ends.
function proposePair() {
  const all = done();
  const last = [...element.querySelectorAll(".strengths th")].findLastIndex((head) => head.classList.contains("advised"));
  const inColumn = (column) => all.find((cell) => cell.closest("tbody") === table().tBodies[0] && cell.parentElement.cellIndex === column);
  const [top, beyond] = [inColumn(last), inColumn(last + 1)];
  if (top && beyond) return [top, beyond];
  return [all[0], top && top !== all[0] ? top : all[all.length - 1]];
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

function openViewer(position) {
  const all = items();
  const at = all.find((item) => item.id === position) ?? all[0];
  if (!at) return;
  const base = all.find((item) => item.row === at.row && item.column === 0 && item !== at);
  kleinViewer.open({
    items: all, a: at.id, b: base?.id ?? state.b,
    rate: table().dataset.own === "true" ? rate : null,
    closed: (id) => cellAt(id) && focusCell(cellAt(id)),
  });
}

function rate(position, rating) {
  const cell = cellAt(position);
  cell.dataset.rating = rating;
  cell.parentElement.querySelector(".stars").textContent = rating ? `★ ${rating}` : "";
  say("rate", position, rating, "submit");
}

/* One cell is in the tab order; arrow keys go to the others. */
function markFocus() {
  if (!cellAt(state.focus)) state.focus = "0";
  for (const cell of cells()) cell.tabIndex = positionOf(cell) === state.focus ? 0 : -1;
}

function focusCell(cell) {
  state.focus = positionOf(cell);
  markFocus();
  cell.focus();
  cell.scrollIntoView({ block: "nearest", inline: "nearest" });
}

element.addEventListener("keydown", (event) => {
  const place = event.target.closest("button.cell")?.parentElement;
  if (!place || !/^(Arrow(Left|Right|Up|Down)|Home|End)$/.test(event.key)) return;
  event.preventDefault();
  const rows = [...element.querySelectorAll("tr.cells")];
  const [row, column] = [rows.indexOf(place.parentElement), place.cellIndex];
  const [toRow, toColumn] = {
    ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1], ArrowUp: [row - 1, column], ArrowDown: [row + 1, column],
    Home: [row, 0], End: [row, place.parentElement.cells.length - 1],
  }[event.key];
  const to = rows[toRow]?.cells[toColumn]?.querySelector("button.cell");
  if (to) focusCell(to);
});

element.addEventListener("focusin", (event) => {
  if (event.target.matches("button.cell")) state.focus = positionOf(event.target);
});

element.addEventListener("click", (event) => {
  const cell = event.target.closest("button.cell");
  if (!cell) return;
  state.focus = positionOf(cell);
  markFocus();
  if (!cell.classList.contains("done")) return;
  const side = state.next;
  state.next = side === "a" ? "b" : "a";
  choose({ [side]: positionOf(cell) });
});

const isTyping = (target) =>
  target.closest("input, textarea, select, [contenteditable=true], [role=listbox], [role=combobox]") !== null;

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || element.offsetParent === null || event.key.toLowerCase() !== "f") return;
  if (!document.querySelector("dialog[open]") && !isTyping(event.target)) openViewer(state.focus);
});

async function copyLink() {
  const copied = await write(location.href);
  byId("copy-said").textContent = copied ? "Link copied." : "The browser does not allow it: copy the address from the address bar.";
  setTimeout(() => { byId("copy-said").textContent = ""; }, 4000);
}

document.addEventListener("click", (event) => {
  if (event.target.closest("#open-viewer")) openViewer(state.focus);
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

// The field that an error of the form is about is marked, until it is changed or another event says more.
function markWrong() {
  const wrong = byId("sweep-status").querySelector("[data-wrong]")?.dataset.wrong;
  for (const field of document.querySelectorAll("#sweep-form [aria-invalid]")) field.removeAttribute("aria-invalid");
  const labels = wrong ? [...document.querySelectorAll("#sweep-form [data-testid=block-info]")] : [];
  const label = labels.find((each) => each.textContent.trim().replace(/ \(.*\)$/, "") === wrong);
  label?.closest(".block")?.querySelector("input, textarea")?.setAttribute("aria-invalid", "true");
}

new MutationObserver(markWrong).observe(byId("sweep-status"), { childList: true, subtree: true });
byId("sweep-form").addEventListener("input", (event) => event.target.removeAttribute("aria-invalid"));

watch("value", refresh);
refresh();
