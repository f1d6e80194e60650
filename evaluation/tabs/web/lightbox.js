// One cell of the grid in full: walk with the arrow keys, rate with the digits. Continues grid.js: the same `element`.
// The native dialog keeps the focus inside, closes on Escape and gives the focus back.

const dialog = () => byId("lightbox");

function openLightbox(position) {
  const cell = cellAt(position) ?? cells().find((each) => each.classList.contains("done"));
  if (!cell || dialog().open) return;
  showCell(cell);
  dialog().showModal();
  byId("lightbox-close").focus();
}

function showCell(cell) {
  const done = cells().filter((each) => each.classList.contains("done"));
  state.shown = cell.dataset.position;
  const picture = cell.querySelector("img");
  const large = byId("lightbox-image");
  if (large.getAttribute("src") !== picture.getAttribute("src")) large.src = picture.getAttribute("src");
  large.alt = picture.alt;
  byId("lightbox-strength").textContent = `Strength ${cell.dataset.strength}`;
  byId("lightbox-where").textContent = `${cell.dataset.where} · ${done.indexOf(cell) + 1} of ${done.length}`;
  dialog().style.setProperty("--shape", element.querySelector("table").style.getPropertyValue("--shape"));
  byId("lightbox-rating").hidden = element.querySelector("table").dataset.own !== "true";
  showRating(cell.dataset.rating);
}

function showRating(rating) {
  for (const button of byId("lightbox-rating").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.rating === rating));
  }
}

// The next finished cell in that direction; cells without an image are passed over.
function walk(key) {
  const from = cellAt(state.shown);
  if (!from) return;
  const [row, column] = [Number(from.dataset.row), Number(from.dataset.column)];
  const along = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[key];
  if (!along) return;
  const all = cells();
  for (let step = 1; step <= all.length; step++) {
    const to = all.find(
      (cell) => Number(cell.dataset.row) === row + step * along[0] && Number(cell.dataset.column) === column + step * along[1],
    );
    if (!to) return;
    if (to.classList.contains("done")) return showCell(to);
  }
}

function rate(rating) {
  const cell = cellAt(state.shown);
  if (!cell || element.querySelector("table").dataset.own !== "true") return;
  cell.dataset.rating = rating;
  showStars();
  showRating(rating);
  trigger("submit", { position: Number(cell.dataset.position), rating: Number(rating) });
}

function showStars() {
  for (const cell of cells()) {
    const stars = cell.parentElement.querySelector(".stars");
    if (stars) stars.textContent = cell.dataset.rating > 0 ? `★ ${cell.dataset.rating}` : "";
  }
}

function isTyping(target) {
  return target.closest("input, textarea, select, [contenteditable=true], [role=listbox], [role=combobox]") !== null;
}

async function copyLink() {
  const said = byId("copy-said");
  try {
    await navigator.clipboard.writeText(location.href);
    said.textContent = "Link copied.";
  } catch {
    said.textContent = "The browser does not allow it: copy the address from the address bar.";
  }
  setTimeout(() => (said.textContent = ""), 4000);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || element.offsetParent === null) return;
  if (dialog()?.open) {
    if (/^Arrow/.test(event.key)) {
      event.preventDefault();
      walk(event.key);
    } else if (/^[0-5]$/.test(event.key)) rate(event.key);
    else if (event.key.toLowerCase() === "f") dialog().close();
  } else if (event.key.toLowerCase() === "f" && !isTyping(event.target)) openLightbox(state.focus);
});

document.addEventListener("click", (event) => {
  if (event.target.closest("#open-lightbox")) openLightbox(state.focus);
  else if (event.target.closest("#copy-link")) copyLink();
  else if (event.target.closest("#lightbox-close") || event.target === dialog()) dialog().close();
  else if (event.target.closest("#lightbox .walk")) walk(event.target.closest(".walk").dataset.key);
  else if (event.target.closest("#lightbox-rating button")) {
    const chosen = event.target.closest("button");
    rate(chosen.getAttribute("aria-pressed") === "true" ? "0" : chosen.dataset.rating);
  }
});

function attachLightbox() {
  if (!dialog()) return void requestAnimationFrame(attachLightbox);
  dialog().addEventListener("close", () => {
    const cell = cellAt(state.shown);
    if (cell) focusCell(cell);
  });
}

watch("value", showStars);
attachLightbox();
showStars();
