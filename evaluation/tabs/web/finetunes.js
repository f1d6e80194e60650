// The Add Finetune dialog: opened and closed here, at once; what is in it is Gradio's.
// While it is open the rest of the page is inert, so neither Tab nor a screen reader leaves it.

const DIALOG = "finetune-dialog";
const OPENER = "add-finetune";
const state = { inert: [] };

const dialog = () => document.getElementById(DIALOG);

function outside(node) {
  const found = [];
  for (let at = node; at && at !== document.body; at = at.parentElement) {
    for (const sibling of at.parentElement?.children ?? []) {
      if (sibling !== at && !sibling.inert && !sibling.contains(document.querySelector(".toast-wrap"))) found.push(sibling);
    }
  }
  return found;
}

function open() {
  const box = dialog();
  box.setAttribute("role", "dialog");
  box.setAttribute("aria-modal", "true");
  box.setAttribute("aria-labelledby", "finetune-dialog-title");
  box.dataset.open = "";
  state.inert = outside(box);
  for (const node of state.inert) node.inert = true;
  document.documentElement.classList.add("dialog-open");
  const input = box.querySelector("#dialog-file input[type=file]");
  if (input) input.accept = ".safetensors";
  (box.querySelector("#dialog-file button") ?? box.querySelector("button")).focus();
}

function close() {
  const box = dialog();
  if (!box || !("open" in box.dataset)) return;
  delete box.dataset.open;
  for (const node of state.inert) node.inert = false;
  state.inert = [];
  document.documentElement.classList.remove("dialog-open");
  document.getElementById(OPENER)?.focus();
}

function cancel() {
  close();
  say("cancel");
}

element.addEventListener("click", (event) => {
  if (event.target.closest("[data-act=cancel]")) close(); // page.js tells it
});

document.addEventListener("click", (event) => {
  if (event.target.closest(`#${OPENER}`)) open();
  else if (event.target.closest("#dialog-cancel")) close();
});

// An open list of a dropdown takes Escape first. Tab would open it again after the focus has left and closed it, so
// Gradio does not get to see that key.
document.addEventListener("keydown", (event) => {
  const list = document.activeElement?.matches("#finetunes [role=combobox][aria-expanded=true]") ? document.activeElement : null;
  if (event.key === "Tab" && list) event.stopPropagation();
  const box = dialog();
  if (event.key !== "Escape" || list || !box || !("open" in box.dataset)) return;
  event.preventDefault();
  cancel();
}, true);

let seen = "";
watch("value", () => {
  const wanted = element.querySelector("[data-close]")?.dataset.close ?? "";
  if (wanted && wanted !== seen) close();
  seen = wanted;
});
