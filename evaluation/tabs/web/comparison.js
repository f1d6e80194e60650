// What the Comparison tab's own HTML does in the page: filters, picks, folding, the chart's points, one image, several side
// by side. Each of its parts runs this script for itself. Texts travel by dataset and textContent only, so a prompt stays
// inert. `element`, `trigger` and `watch` are given by gr.HTML's js_on_load.

const all = (selector) => [...element.querySelectorAll(selector)];
const one = (selector) => element.querySelector(selector);
const still = window.matchMedia("(prefers-reduced-motion: reduce)");
const picks = new Set(); // ids of picked rows, drawn or not
const folded = new Set(); // keys of groups that are closed
let lastPick = null;
let focused = null; // the data-key of what has the focus: a redraw replaces it
let menuOpen = false; // a redraw draws it closed
let opened = null; // which opening of the dialog this is
let detail = null; // the row the panel shows

function act(button) {
  const { act: name, value } = button.dataset;
  if (name === "unpick") return void unpick();
  if (name === "clear") emptySearch();
  trigger("click", { act: name, value, ids: [...picks] });
  if (name === "delete") unpick();
}

// At once and here: the server's answer would undo what is typed meanwhile.
function emptySearch() {
  const box = document.querySelector("#log-search textarea, #log-search input");
  if (!box?.value) return;
  box.value = "";
  box.dispatchEvent(new Event("input", { bubbles: true }));
}

/* Filters: all of them go with every change, so that the last one never undoes one before it. */
function readFilters() {
  return Object.fromEntries(all("select[name], input[name]").map((field) => [field.name, field.value]));
}

element.addEventListener("change", (event) => {
  const field = event.target;
  if (field.matches("[data-pick]")) return void pick(field, event);
  if (field.matches("[data-pick-all]")) return void pickAll(field.checked);
  if (field.name === "stars") {
    const { id } = field.closest("[data-id]").dataset;
    return void trigger("select", { id, stars: field.value });
  }
  if (field.name === "measure") return void trigger("click", { act: "measure", value: field.value });
  if (field.matches("select, input[name]")) trigger("click", { act: "filter", filters: readFilters() });
});

/* Picks stay while rows are filtered, sorted and drawn anew. */
function pick(box) {
  const row = box.closest("tr");
  set(row, box.checked);
  lastPick = row.dataset.id;
  showPicks();
}

function set(row, checked) {
  if (checked) picks.add(row.dataset.id);
  else picks.delete(row.dataset.id);
}

function pickAll(checked) {
  for (const row of all("tr[data-id]")) if (row.offsetParent) set(row, checked);
  showPicks();
}

function pickTo(row) {
  const rows = all("tr[data-id]");
  const [from, to] = [rows.findIndex((each) => each.dataset.id === lastPick), rows.indexOf(row)].sort((a, b) => a - b);
  if (from >= 0) for (const each of rows.slice(from, to + 1)) set(each, true);
  showPicks();
}

function unpick() {
  picks.clear();
  showPicks();
}

function showPicks() {
  const bar = one(".picks");
  for (const row of all("tr[data-id]")) row.querySelector("[data-pick]").checked = picks.has(row.dataset.id);
  const box = one("[data-pick-all]");
  if (box) {
    const drawn = all("tr[data-id]").filter((row) => row.offsetParent);
    const count = drawn.filter((row) => picks.has(row.dataset.id)).length;
    box.checked = count > 0 && count === drawn.length;
    box.indeterminate = count > 0 && count < drawn.length;
  }
  if (!bar) return;
  bar.hidden = picks.size === 0;
  one("[data-picked]").textContent = `${picks.size} picked`;
  one('[data-act="compare"]').disabled = picks.size < 2 || picks.size > 8;
  one('[data-act="compare"]').title = picks.size < 2 || picks.size > 8 ? "Pick 2 to 8 rows" : "";
  const what = one("[data-what]");
  what.textContent = picks.size ? `the ${picks.size} picked row${picks.size > 1 ? "s" : ""}` : what.dataset.all;
}

function fold(button) {
  const key = button.dataset.fold;
  if (folded.has(key)) folded.delete(key);
  else folded.add(key);
  showFolds();
  showPicks();
}

function showFolds() {
  for (const button of all("[data-fold]")) {
    const closed = folded.has(button.dataset.fold);
    button.setAttribute("aria-expanded", String(!closed));
    button.closest("tbody").nextElementSibling.hidden = closed;
  }
}

/* The chart's points: one of them is in the tab order, arrow keys go through the others. */
function showTip(dot) {
  const figure = dot.closest("figure");
  const tip = figure.querySelector(".tip") ?? figure.appendChild(Object.assign(document.createElement("div"), { className: "tip" }));
  const text = Object.assign(document.createElement("span"), { textContent: dot.querySelector("title")?.textContent ?? dot.dataset.words });
  const parts = [text];
  if (dot.dataset.image) parts.unshift(Object.assign(new Image(), { src: dot.dataset.image, alt: "" }));
  tip.replaceChildren(...parts);
  const [box, at] = [figure.getBoundingClientRect(), dot.getBoundingClientRect()];
  const left = Math.min(Math.max(at.left + at.width / 2 - box.left, 70), box.width - 70);
  tip.style.left = `${left}px`;
  tip.style.top = `${at.top - box.top - 8}px`;
  tip.hidden = false;
}

function hideTip() {
  for (const tip of all(".tip")) tip.hidden = true;
}

function prepareDots() {
  for (const [index, dot] of all(".dot").entries()) {
    dot.setAttribute("tabindex", index ? "-1" : "0");
    const title = dot.querySelector("title");
    if (title) { // the browser's own tip would cover ours
      dot.dataset.words = title.textContent;
      title.remove();
    }
  }
}

for (const kind of ["pointerover", "focusin"]) {
  element.addEventListener(kind, (event) => {
    const dot = event.target.closest?.(".dot");
    if (dot) showTip(dot);
  });
}
for (const kind of ["pointerout", "focusout"]) {
  element.addEventListener(kind, (event) => {
    if (event.target.closest?.(".dot")) hideTip();
  });
}

/* Several images side by side, or one at a time in the same place. */
const figures = () => all(".side-by-side figure");

function showFigure(index) {
  const count = figures().length;
  const current = (index + count) % count;
  for (const [number, figure] of figures().entries()) {
    figure.classList.toggle("current", number === current);
    figure.querySelector("button").tabIndex = number === current ? 0 : -1;
  }
  figures()[current].querySelector("button").focus();
}

function toggleOne() {
  const pressed = one(".side-by-side").classList.toggle("one");
  one("[data-one]").setAttribute("aria-pressed", String(pressed));
}

function currentFigure() {
  return Math.max(figures().findIndex((figure) => figure.classList.contains("current")), 0);
}

/* One image: the row above or below it, and back to its row when it is closed. */
function step(by) {
  const rows = [...document.querySelectorAll("#log tr[data-id]")];
  const to = rows[rows.findIndex((row) => row.getAttribute("aria-selected") === "true") + by];
  if (!to) return;
  to.querySelector(".thumb").click();
  to.scrollIntoView({ block: "nearest", behavior: still.matches ? "auto" : "smooth" });
}

element.addEventListener("click", (event) => {
  const target = event.target;
  const button = target.closest("button, summary");
  if (target.matches("dialog")) return void target.close(); // its backdrop
  if (button?.dataset.close !== undefined) {
    const dialog = button.closest("dialog");
    if (dialog) return void dialog.close();
    trigger("click", { act: "close" });
    return void document.querySelector('#log tr[aria-selected="true"] .thumb')?.focus();
  }
  if (button?.dataset.step) return void step(Number(button.dataset.step));
  if (button?.dataset.one !== undefined) return void (toggleOne(), showFigure(currentFigure()));
  if (button?.closest("dialog figure")) {
    toggleOne();
    return void showFigure(figures().indexOf(button.closest("figure")));
  }
  if (button?.dataset.fold !== undefined) return void fold(button);
  if (button?.dataset.act) return void act(button);
  if (button?.dataset.export) {
    one(".menu").open = false;
    one(".menu summary").textContent = "Preparing …";
    return void trigger("download", { ending: button.dataset.export, ids: [...picks] });
  }
  const cell = target.closest("td.pick");
  if (cell) {
    if (event.shiftKey && lastPick) pickTo(cell.closest("tr"));
    else if (!target.matches("input")) cell.querySelector("input").click();
    return;
  }
  const row = target.closest("#log [data-id]");
  if (row) trigger("click", { act: "open", value: row.dataset.id });
});

element.addEventListener("keydown", (event) => {
  const { key, target } = event;
  const side = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[key];
  const dot = target.closest(".dot");
  if (dot && side) {
    event.preventDefault();
    const dots = all(".dot");
    const to = dots[dots.indexOf(dot) + side];
    if (to) to.focus();
  } else if (dot && (key === "Enter" || key === " ")) {
    event.preventDefault();
    trigger("click", { act: "open", value: dot.dataset.id });
  } else if (side && target.closest("dialog figure")) {
    event.preventDefault();
    showFigure(currentFigure() + side);
  } else if (key === "Escape" && one(".menu")?.open) {
    one(".menu").open = false;
    one(".menu summary").focus();
  }
});

element.addEventListener("focusin", (event) => {
  focused = event.target.dataset?.key ?? null;
});

element.addEventListener("toggle", (event) => {
  if (event.target.matches(".menu")) menuOpen = event.target.open;
}, true);

// Keys for the whole panel. It comes and goes, so its buttons are looked up when a key is pressed.
if (!window.kleinLogKeys) {
  window.kleinLogKeys = true;
  document.addEventListener("click", (event) => {
    const menu = document.querySelector("#log .menu[open]");
    if (menu && !menu.contains(event.target)) menu.open = false;
  });
  document.addEventListener("klein-exported", () => {
    const summary = document.querySelector("#log .menu summary");
    if (summary) summary.textContent = "Take away";
  });
  document.addEventListener("keydown", (event) => {
    const panel = document.getElementById("log-panel");
    if (!panel?.offsetParent && getComputedStyle(panel ?? document.body).position !== "fixed") return;
    if (!panel || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.target.matches("textarea, select, input:not([type=radio], [type=checkbox])")) return;
    const inside = event.target === document.body || event.target.closest("#log-panel, #log tr");
    if (!inside) return;
    const arrow = { ArrowUp: "-1", ArrowDown: "1" }[event.key];
    if (event.key === "Escape") panel.querySelector("[data-close]")?.click();
    else if (arrow && !event.target.matches("input")) panel.querySelector(`[data-step="${arrow}"]`)?.click();
    else if (/^[0-5]$/.test(event.key)) {
      const star = panel.querySelector(`input[name="stars"][value="${event.key}"]`);
      if (!star) return;
      star.checked = true;
      star.dispatchEvent(new Event("change", { bubbles: true }));
    } else return;
    if (arrow) event.preventDefault();
  });
}

// A redraw changes elements in place, and a field that was touched keeps its own value: make it what is drawn.
function syncFields() {
  for (const list of all("select")) {
    list.value = [...list.options].find((option) => option.hasAttribute("selected"))?.value ?? list.options[0]?.value ?? "";
  }
  for (const field of all("input[name]")) {
    if (field.type === "radio") field.checked = field.hasAttribute("checked");
    else if (field !== document.activeElement) field.value = field.getAttribute("value") ?? "";
  }
}

// After every redraw: what was picked, folded, opened and focused is again, and what has just appeared is where the eye is.
function refresh() {
  syncFields();
  showFolds();
  showPicks();
  prepareDots();
  const dialog = one("dialog");
  if (dialog && dialog.dataset.opened !== opened) {
    opened = dialog.dataset.opened;
    dialog.showModal();
    showFigure(0);
    return;
  }
  const title = one(".detail h3");
  if (title) {
    const shown = one(".detail").dataset.id;
    if (shown !== detail) title.focus({ preventScroll: true });
    detail = shown;
    return;
  }
  const menu = one(".menu");
  if (menu) menu.open = menuOpen;
  // Rows move while the elements stay: the focus goes with its row.
  const active = document.activeElement;
  if (!focused || active.dataset.key === focused || !(active === document.body || element.contains(active))) return;
  one(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

/* While the rows are on the screen they follow what is rendered: ask now and then, and the server draws when there is
   something new. Not while a filter's list is open: its options would change under the pointer. */
const FOLLOW_MS = 2000;
const knowsOpen = CSS.supports("selector(:open)");

function follow() {
  if (!element.isConnected) return void clearInterval(following);
  const choosing = knowsOpen && document.querySelector("select:open");
  if (!document.hidden && element.offsetParent && !choosing) trigger("tick");
}

const following = element.closest("#log") && setInterval(follow, FOLLOW_MS);

watch("value", refresh);
refresh();
