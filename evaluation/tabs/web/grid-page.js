// What the page has around the grid: full screen, the link, Back, the field that is wrong; and the grid's beginning.
// Continues grid-keys.js, as the last of them.

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
