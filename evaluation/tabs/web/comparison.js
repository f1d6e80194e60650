// What the Comparison tab's pieces do beside what page.js tells: picks, folding, the chart's points, keys of the image that
// is open, and asking for what is new. Each piece runs page.js and then this script for itself; `say`, `element`, `trigger`
// and `watch` are theirs. Texts travel by dataset and textContent only, so a prompt stays inert.

const all = (selector) => [...element.querySelectorAll(selector)];
const one = (selector) => element.querySelector(selector);
const picks = new Set(); // ids of picked rows, drawn or not
const folded = new Set(); // keys of groups that are closed
let lastPick = null;
let menuOpen = false; // a redraw draws it closed
let detail = null; // the row the panel shows

const searchBox = () => document.querySelector("#log-search textarea, #log-search input");

// At once and here: the server's answer would undo what is typed meanwhile.
function emptySearch() {
  const box = searchBox();
  if (!box?.value) return;
  box.value = "";
  box.dispatchEvent(new Event("input", { bubbles: true }));
}

/* Picks stay while rows are filtered, sorted and drawn anew. */
function set(row, checked) {
  if (checked) picks.add(row.dataset.id);
  else picks.delete(row.dataset.id);
}

function pickTo(row) {
  const rows = all("tr[data-id]");
  const [from, to] = [rows.findIndex((each) => each.dataset.id === lastPick), rows.indexOf(row)].sort((a, b) => a - b);
  if (from >= 0) for (const each of rows.slice(from, to + 1)) set(each, true);
  showPicks();
}

function showPicks() {
  const drawn = all("tr[data-id]").filter((row) => row.offsetParent);
  for (const row of all("tr[data-id]")) row.querySelector("[data-pick]").checked = picks.has(row.dataset.id);
  const [box, bar] = [one("[data-pick-all]"), one(".picks")];
  if (box) {
    const count = drawn.filter((row) => picks.has(row.dataset.id)).length;
    box.checked = count > 0 && count === drawn.length;
    box.indeterminate = count > 0 && count < drawn.length;
  }
  if (!bar) return;
  const few = picks.size < 2 || picks.size > 8;
  bar.hidden = picks.size === 0;
  one("[data-picked]").textContent = `${picks.size} picked`;
  Object.assign(one('[data-with-picks="compare"]'), { disabled: few, title: few ? "Pick 2 to 8 rows" : "" });
  const what = one("[data-what]");
  what.textContent = picks.size ? `the ${picks.size} picked row${picks.size > 1 ? "s" : ""}` : what.dataset.all;
}

function withPicks(act) {
  if (act !== "unpick") say(act, "", [...picks]);
  if (act !== "compare") picks.clear();
  showPicks();
}

element.addEventListener("change", (event) => {
  const field = event.target;
  if (field.matches("[data-pick]")) {
    const row = field.closest("tr");
    set(row, field.checked);
    lastPick = row.dataset.id;
  } else if (field.matches("[data-pick-all]")) {
    for (const row of all("tr[data-id]")) if (row.offsetParent) set(row, field.checked);
  } else return;
  showPicks();
});

// Before page.js: a click beside the box of a row picks it too, and does not open the row.
element.addEventListener("click", (event) => {
  const cell = event.target.closest("td.pick");
  if (!cell) return;
  if (event.shiftKey && lastPick) pickTo(cell.closest("tr"));
  else if (!event.target.matches("input")) cell.querySelector("input").click();
  if (!event.target.matches("input")) event.stopPropagation();
}, true);

element.addEventListener("click", (event) => {
  const button = event.target.closest("button, .dot");
  const { withPicks: act, fold, step: by, export: ending } = button?.dataset ?? {};
  if (button?.dataset.act === "clear") emptySearch();
  if (button?.dataset.act === "close") document.querySelector('#log tr[aria-selected="true"] .thumb')?.focus();
  if (act) withPicks(act);
  if (by) step(Number(by));
  if (button?.matches(".dot")) say("open", button.dataset.id);
  if (fold !== undefined) {
    if (!folded.delete(fold)) folded.add(fold);
    showFolds();
    showPicks();
  }
  if (ending) {
    one(".menu").open = false;
    one(".menu summary").textContent = "Preparing …";
    say(ending, "", [...picks], "download");
  }
});

// Words that were typed before the page could tell, or so soon after others that no change was seen, are told now: what is
// drawn is what the box says.
let told = null;
function searchAgain() {
  const [words, box] = [one("[data-words]")?.dataset.words, searchBox()];
  if (words === undefined || !box || box.value === words) told = null;
  else if (box.value !== told) say("search", "", (told = box.value));
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
  const text = Object.assign(document.createElement("span"), { textContent: dot.dataset.words });
  tip.replaceChildren(...(dot.dataset.image ? [Object.assign(new Image(), { src: dot.dataset.image, alt: "" })] : []), text);
  const [box, at] = [figure.getBoundingClientRect(), dot.getBoundingClientRect()];
  tip.style.left = `${Math.min(Math.max(at.left + at.width / 2 - box.left, 70), box.width - 70)}px`;
  tip.style.top = `${at.top - box.top - 8}px`;
  tip.hidden = false;
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

for (const [kinds, shown] of [[["pointerover", "focusin"], true], [["pointerout", "focusout"], false]]) {
  for (const kind of kinds) {
    element.addEventListener(kind, (event) => {
      const dot = event.target.closest?.(".dot");
      if (dot && shown) showTip(dot);
      else if (dot) for (const tip of all(".tip")) tip.hidden = true;
    });
  }
}

/* One image: the row above or below it. */
function step(by) {
  const rows = [...document.querySelectorAll("#log tr[data-id]")];
  const to = rows[rows.findIndex((row) => row.getAttribute("aria-selected") === "true") + by];
  if (!to) return;
  to.querySelector(".thumb").click();
  to.scrollIntoView({ block: "nearest", behavior: still.matches ? "auto" : "smooth" });
}

element.addEventListener("keydown", (event) => {
  const { key, target } = event;
  const side = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[key];
  const dot = target.closest(".dot");
  if (dot && (side || key === "Enter" || key === " ")) {
    event.preventDefault();
    const dots = all(".dot");
    if (side) dots[dots.indexOf(dot) + side]?.focus();
    else say("open", dot.dataset.id);
  } else if (key === "Escape" && one(".menu")?.open) {
    one(".menu").open = false;
    one(".menu summary").focus();
  }
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
  document.addEventListener("klein-saved", () => {
    const summary = document.querySelector("#log .menu summary");
    if (summary) summary.textContent = "Take away";
  });
  document.addEventListener("keydown", (event) => {
    const panel = document.getElementById("log-panel");
    if (!panel?.offsetParent && getComputedStyle(panel ?? document.body).position !== "fixed") return;
    if (!panel || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.target.matches("textarea, select, input:not([type=radio], [type=checkbox])")) return;
    if (event.target !== document.body && !event.target.closest("#log-panel, #log tr")) return;
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

// After every redraw: what was picked, folded and opened is again, and what has just appeared is where the eye is.
function refresh() {
  syncFields();
  showFolds();
  showPicks();
  prepareDots();
  const [menu, title] = [one(".menu"), one(".detail h3")];
  if (menu) menu.open = menuOpen;
  if (!title) return;
  const shown = one(".detail").dataset.id;
  if (shown !== detail) title.focus({ preventScroll: true });
  detail = shown;
}

/* Several side by side: what the server says of them is for the viewer. */
function compare() {
  const said = one("[data-compare]")?.dataset.compare;
  if (!said) return;
  const focus = document.querySelector('#log [data-key="compare"]');
  kleinViewer.open({ ...JSON.parse(said), all: true, mode: "side", closed: () => focus?.focus() });
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

watch("value", () => { refresh(); compare(); searchAgain(); });
refresh();
