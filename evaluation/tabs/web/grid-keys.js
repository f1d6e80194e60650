// What a person does with a cell: go to it by keys, choose it as A or B, rate it, put its row or column away.
// Continues grid-look.js.

/* One cell is in the tab order; arrow keys go to the others. */
function markFocus() {
  const at = cellAt(state.focus);
  if (!at || !isInSight(at)) {
    const first = cells().find(isInSight);
    state.focus = first ? positionOf(first) : "0";
  }
  for (const cell of cells()) cell.tabIndex = positionOf(cell) === state.focus ? 0 : -1;
}

function focusCell(cell) {
  if (!isInSight(cell)) boxOf(cell).checked = true; // full screen ended at a scene that is folded away
  Object.assign(state, { focus: positionOf(cell), came: true });
  markFocus();
  cell.focus();
  cell.scrollIntoView({ block: "nearest", inline: "nearest" });
}

/* Arrows go to the next cell that is in sight. */
function step(cell, key) {
  const rows = [...element.querySelectorAll("tr.cells")].filter(isInSight).map((row) => [...row.querySelectorAll("button.cell")].filter(isShown));
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

element.addEventListener("change", markFocus); // a checkpoint was folded or unfolded

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

const mayRate = () => table().dataset.own === "true";

function rate(position, rating) {
  const cell = cellAt(position);
  cell.dataset.rating = rating;
  showStars();
  cell.parentElement.querySelector(".stars").textContent = rating ? `★ ${rating}` : "";
  say("rate", position, rating, "submit");
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
