// The grid of the Sweep tab: it puts in the cells that changed, and knows which two are A and B. Everything works in the page
// alone, without a round trip, so it is at hand while a sweep still runs. Continues page.js: `element`, `props`, `watch`, `say`;
// grid-look.js, grid-keys.js and grid-page.js continue it. live_grid.py makes the value. Which cells are A and B is told to
// Python, for Refine; the run on the page is told to the address bar.

const byId = (id) => document.getElementById(id);
const OURS = new Set(["tabindex", "aria-pressed", "data-side"]); // what this script says of a cell
const drawn = { table: null, cells: {} };
const state = { run: null, a: null, b: null, next: "a", chosen: false, focus: "0", came: false, told: "", keys: {} };

const table = () => element.querySelector("table");
const cells = () => [...element.querySelectorAll("button.cell")];
const done = () => cells().filter((cell) => cell.classList.contains("done") && isShown(cell));
const isShown = (cell) => !cell.closest("[hidden]");
const boxOf = (cell) => byId(cell.closest("tbody").dataset.fold); // shows the scenes of a checkpoint that are folded away
const isInSight = (cell) => isShown(cell) && boxOf(cell)?.checked !== false;
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
