// How a grid is looked at: how large, where (zoom.js), what stands below a picture, which rows and columns are out of the way.
// Size and score are kept in this browser. Continues grid.js.

const KEPT = "klein-grid";
const look = { size: 0, score: "evidence", ...read(KEPT) }; // px of a picture's width, 0 as many as fit
const away = { column: new Set(), row: new Set() }; // strengths and rows that are hidden, in their own words

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
  focusCell(cells().find(isInSight));
}

function lookAgain() {
  hide();
  resize();
  markFocus();
  settle();
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
