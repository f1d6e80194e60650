// Cells of the grid and the comparison of two of them. Everything here works in the page alone: no round trip, so it is
// at hand while a sweep still runs. Texts travel by dataset and textContent only, so a prompt stays inert.
// `element`, `watch` and `trigger` are given by gr.HTML's js_on_load. Which cells are A and B is told to Python by a
// "select" event, for Refine; the run on the page is told to the address bar.

const byId = (id) => document.getElementById(id);
const cells = () => [...element.querySelectorAll("button.cell")];
const state = { run: null, a: null, b: null, next: "a", chosen: false, focus: "0", flicker: null, told: "", keys: {}, held: false, shown: null };
const still = window.matchMedia("(prefers-reduced-motion: reduce)");

function cellAt(position) {
  return element.querySelector(`button.cell.done[data-position="${Number(position)}"]`);
}

function move(from, key) {
  const row = Number(from.dataset.row);
  const column = Number(from.dataset.column);
  const all = cells();
  const inRow = all.filter((cell) => Number(cell.dataset.row) === row);
  const targets = {
    ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1], ArrowUp: [row - 1, column], ArrowDown: [row + 1, column],
    Home: [row, 0], End: [row, inRow.length - 1],
  };
  const [toRow, toColumn] = targets[key];
  const to = all.find((cell) => Number(cell.dataset.row) === toRow && Number(cell.dataset.column) === toColumn);
  if (to) focusCell(to);
}

function focusCell(cell) {
  state.focus = cell.dataset.position;
  markFocus();
  cell.focus();
  cell.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function markFocus() {
  const all = cells();
  if (!all.some((cell) => cell.dataset.position === state.focus)) state.focus = "0";
  for (const cell of all) cell.tabIndex = cell.dataset.position === state.focus ? 0 : -1;
}

function pick(cell) {
  if (!cell.classList.contains("done")) return;
  state.chosen = true;
  state[state.next] = cell.dataset.position;
  state.next = state.next === "a" ? "b" : "a";
  show();
}

// After every redraw of the table: bring selection, focus order and lists up to date.
function refresh() {
  const table = element.querySelector("table");
  const run = table ? table.dataset.run ?? null : null;
  if (run !== state.run) {
    noteRun(run);
    const [a, b] = [find(state.keys.a), find(state.keys.b)];
    const chosen = state.chosen && a !== null && b !== null;
    Object.assign(state, { run, a: chosen ? a : null, b: chosen ? b : null, next: "a", chosen, focus: "0" });
  }
  markFocus();
  // A redraw takes the focused cell away: the keyboard goes on where it was.
  if (state.held && document.activeElement === document.body) {
    element.querySelector("button.cell[tabindex='0']")?.focus({ preventScroll: true });
  }
  const done = cells().filter((cell) => cell.classList.contains("done"));
  if (!state.chosen && done.length > 1) [state.a, state.b] = proposePair(done).map((cell) => cell.dataset.position);
  show();
}

// Until a person chooses: the highest advised strength and the next one, where it goes wrong; else the two ends.
function proposePair(done) {
  const last = [...element.querySelectorAll(".strengths th")].findLastIndex((head) => head.classList.contains("advised"));
  const inColumn = (column) => done.find((cell) => cell.dataset.row === "0" && Number(cell.dataset.column) === column);
  const [top, beyond] = [inColumn(last), inColumn(last + 1)];
  if (top && beyond) return [top, beyond];
  return [done[0], top && top !== done[0] ? top : done[done.length - 1]];
}

// The address of the page opens its run again. On Spaces the page is a frame, and the address bar that of its parent.
function noteRun(run) {
  const url = new URL(location.href);
  if (!run || url.searchParams.get("sweep") === run) return;
  url.searchParams.set("sweep", run);
  history.replaceState(history.state, "", url);
  if (window.parent !== window) {
    window.parent.postMessage({ queryString: url.searchParams.toString(), hash: "" }, "https://huggingface.co");
  }
}

// Once a choice, and not while the grid fills: what can be refined is known at its end.
function tellChosen() {
  const table = element.querySelector("table");
  if (!state.run || table.getAttribute("aria-busy") === "true") return;
  const told = `${state.run} ${state.a} ${state.b}`;
  if (told === state.told) return;
  state.told = told;
  const position = (side) => (side === null ? null : Number(side));
  trigger("select", { a: position(state.a), b: position(state.b) });
}

// A choice of A and B outlives a run that adds strengths: the same row and strength stand elsewhere in the new grid.
function keyOf(position) {
  const cell = cellAt(position);
  return cell ? `${cell.dataset.where} ${cell.dataset.strength}` : "";
}

function find(key) {
  return (key && cells().find((cell) => keyOf(cell.dataset.position) === key)?.dataset.position) || null;
}

function fillList(list, chosen, done) {
  const wanted = done.map((cell) => `${cell.dataset.position} ${cell.dataset.label}`).join("\n");
  if (list.dataset.wanted !== wanted) {
    list.dataset.wanted = wanted;
    list.replaceChildren(...done.map((cell) => new Option(cell.dataset.label, cell.dataset.position)));
  }
  list.value = chosen ?? "";
}

function show() {
  const panel = byId("compare");
  if (!panel) return;
  const done = cells().filter((cell) => cell.classList.contains("done"));
  panel.hidden = done.length < 2;
  for (const cell of cells()) {
    const side = cell.dataset.position === state.a ? "A" : cell.dataset.position === state.b ? "B" : "";
    if (cell.classList.contains("done")) cell.setAttribute("aria-pressed", String(side !== "" && !panel.hidden));
    if (side && !panel.hidden) cell.dataset.side = side;
    else delete cell.dataset.side;
  }
  if (panel.hidden) return;
  for (const side of ["a", "b"]) {
    fillList(byId(`compare-${side}`), state[side], done);
    const image = byId(`compare-image-${side}`);
    const source = cellAt(state[side])?.querySelector("img");
    if (!source) continue;
    if (image.getAttribute("src") !== source.getAttribute("src")) image.src = source.getAttribute("src");
    image.alt = `${side.toUpperCase()}: ${source.alt}`;
    byId(`compare-label-${side}`).textContent = `${side.toUpperCase()} · ${cellAt(state[side]).dataset.label}`;
  }
  const shape = element.querySelector("table").style.getPropertyValue("--shape");
  byId("compare-stage").style.setProperty("--shape", shape);
  state.keys = { a: keyOf(state.a), b: keyOf(state.b) };
  tellChosen();
}

function setMode(mode) {
  const stage = byId("compare-stage");
  stage.className = `stage ${mode}`;
  byId("compare").dataset.mode = mode;
  clearInterval(state.flicker);
  // Twice a second: quick enough to see a change, below the three flashes a second of WCAG 2.3.1.
  if (mode === "flicker" && !still.matches) state.flicker = setInterval(flip, 600);
}

function flip() {
  byId("compare-stage").classList.toggle("flipped");
}

function setSplit(percent) {
  byId("compare-stage").style.setProperty("--split", `${percent}%`);
}

element.addEventListener("keydown", (event) => {
  const cell = event.target.closest("button.cell");
  if (!cell || !/^(Arrow(Left|Right|Up|Down)|Home|End)$/.test(event.key)) return;
  event.preventDefault();
  move(cell, event.key);
});

document.addEventListener("focusin", (event) => {
  state.held = element.contains(event.target);
  if (state.held && event.target.matches("button.cell")) state.focus = event.target.dataset.position;
});
document.addEventListener("pointerdown", (event) => {
  if (!element.contains(event.target)) state.held = false;
});

element.addEventListener("click", (event) => {
  const cell = event.target.closest("button.cell");
  if (!cell) return;
  state.focus = cell.dataset.position;
  markFocus();
  pick(cell);
});

function attachPanel() {
  const panel = byId("compare");
  if (!panel) return void requestAnimationFrame(attachPanel);
  for (const side of ["a", "b"]) {
    byId(`compare-${side}`).addEventListener("change", (event) => {
      state.chosen = true;
      state[side] = event.target.value;
      show();
    });
  }
  byId("compare-swap").addEventListener("click", () => {
    state.chosen = true;
    [state.a, state.b] = [state.b, state.a];
    show();
  });
  panel.addEventListener("change", (event) => {
    if (event.target.name === "compare-mode") setMode(event.target.value);
  });
  byId("compare-flip").addEventListener("click", () => {
    clearInterval(state.flicker);
    flip();
  });
  const range = byId("compare-split");
  range.addEventListener("input", () => setSplit(range.value));
  const stage = byId("compare-stage");
  const drag = (event) => {
    if (!stage.classList.contains("slider") || !(event.buttons & 1)) return;
    const box = stage.getBoundingClientRect();
    range.value = String(Math.round((100 * (event.clientX - box.left)) / box.width));
    setSplit(range.value);
  };
  stage.addEventListener("pointerdown", drag);
  stage.addEventListener("pointermove", drag);
  setMode("slider");
  refresh();
}

// On a narrow screen the grid is below the form: go where the progress is, after a click and when a link was opened.
function goToStatus() {
  const status = byId("sweep-status");
  const { top, bottom } = status.getBoundingClientRect();
  if (top < 0 || bottom > window.innerHeight) {
    status.scrollIntoView({ block: "start", behavior: still.matches ? "auto" : "smooth" });
  }
}

document.addEventListener("click", (event) => {
  if (event.target.closest("#run, #resume, #add, #refine")) goToStatus();
});

if (new URL(location.href).searchParams.has("sweep")) {
  const opened = new MutationObserver(() => {
    opened.disconnect();
    goToStatus();
  });
  opened.observe(byId("sweep-status"), { childList: true, subtree: true, characterData: true });
}

watch("value", refresh);
attachPanel();
