// What the Playground's own HTML does in the page: pass clicks on, the list of models, the slider over two images, and
// copying programs. Texts travel by dataset and textContent only, so a prompt stays inert.
// `element`, `trigger` and `watch` are given by gr.HTML's js_on_load.

const find = (selector) => element.querySelector(selector);
const menu = () => find(".picker-menu");
const options = () => [...element.querySelectorAll('[role="option"]')];
const still = window.matchMedia("(prefers-reduced-motion: reduce)");
let focused = null; // a selector of what had the focus: a redraw replaces it
let typed = { text: "", at: 0 };

const EVENTS = { manage: "expand", retry: "retry", compare: "play", hide: "clear", use: "edit", sweep: "select" };

function say(button) {
  const { act, id } = button.dataset;
  trigger(EVENTS[act] ?? "click", { act, id });
}

// What a button is called across redraws.
const name = ({ dataset: { act, id, copy, split } }) =>
  act ? `[data-act="${act}"]${id ? `[data-id="${CSS.escape(id)}"]` : ""}`
    : copy ? `[data-copy="${copy}"]` : split !== undefined ? "[data-split]" : null;

/* The list of models: a button that opens a listbox. */
function open() {
  if (!menu().hidden) return;
  menu().hidden = false;
  find(".picker-button").setAttribute("aria-expanded", "true");
  const chosen = find('[role="option"][aria-selected="true"]') ?? options()[0];
  if (chosen) mark(chosen);
}

function close(refocus) {
  if (!menu() || menu().hidden) return;
  menu().hidden = true;
  const button = find(".picker-button");
  button.setAttribute("aria-expanded", "false");
  if (refocus) button.focus();
}

function mark(option) {
  for (const each of options()) each.tabIndex = each === option ? 0 : -1;
  option.focus({ preventScroll: true });
  option.scrollIntoView({ block: "nearest" });
}

function pick(option) {
  close(true);
  focused = ".picker-button";
  if (option.getAttribute("aria-selected") !== "true") trigger("click", { act: "pick", value: option.dataset.value });
}

function walk(event, option) {
  const all = options();
  const at = all.indexOf(option);
  const to = {
    ArrowDown: Math.min(at + 1, all.length - 1), ArrowUp: Math.max(at - 1, 0), Home: 0, End: all.length - 1,
  }[event.key];
  if (to !== undefined) mark(all[to]);
  else if (event.key === "Enter" || event.key === " ") pick(option);
  else if (event.key === "Escape") close(true);
  else if (event.key.length === 1 && !event.ctrlKey && !event.metaKey && !event.altKey) jump(event.key, at);
  else return;
  event.preventDefault();
}

// Typing goes to the next model whose name begins so.
function jump(key, at) {
  const now = Date.now();
  typed = { text: (now - typed.at < 700 ? typed.text : "") + key.toLowerCase(), at: now };
  const all = options();
  const after = typed.text.length > 1 ? at : at + 1;
  const found = [...all.slice(after), ...all.slice(0, after)].find((option) =>
    option.querySelector(".title").textContent.toLowerCase().startsWith(typed.text));
  if (found) mark(found);
}

/* Programs: copied at a click, and shown. */
async function copy(button) {
  const name = button.dataset.copy;
  for (const section of element.querySelectorAll("[data-program]")) section.hidden = section.dataset.program !== name;
  for (const each of element.querySelectorAll("[data-copy]")) {
    each.setAttribute("aria-expanded", String(each === button));
  }
  const code = find(`[data-program="${CSS.escape(name)}"] code`);
  if (code) find(".copied").textContent = (await write(code)) ? `Copied as ${name}.` : "Copy the marked text.";
  else find(".copied").textContent = "";
}

// The clipboard is there on https and localhost only; elsewhere the text is marked and the old command is tried.
async function write(code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    return true;
  } catch {
    window.getSelection().selectAllChildren(code);
    return document.execCommand("copy");
  }
}

/* Base and image under one slider. */
function split(percent) {
  find(".stage").style.setProperty("--split", `${percent}%`);
}

function drag(event) {
  const stage = event.target.closest(".stage.slider");
  if (!stage || !(event.buttons & 1)) return;
  const box = stage.getBoundingClientRect();
  const range = find("[data-split]");
  range.value = String(Math.round((100 * (event.clientX - box.left)) / box.width));
  split(range.value);
}

element.addEventListener("click", (event) => {
  const option = event.target.closest('[role="option"]');
  if (option) return pick(option);
  if (event.target.closest(".picker-button")) return menu().hidden ? open() : close(true);
  const copied = event.target.closest("[data-copy]");
  if (copied) return void copy(copied);
  const button = event.target.closest("[data-act]");
  if (!button) return;
  close(false);
  say(button);
});

element.addEventListener("keydown", (event) => {
  const option = event.target.closest('[role="option"]');
  if (option) return walk(event, option);
  if (event.target.closest(".picker-button") && ["ArrowDown", "ArrowUp"].includes(event.key)) {
    event.preventDefault();
    open();
  } else if (event.key === "Escape") close(true);
});

element.addEventListener("focusout", (event) => {
  if (menu() && !find(".picker").contains(event.relatedTarget)) close(false);
});
element.addEventListener("input", (event) => {
  if (event.target.matches("[data-split]")) split(event.target.value);
});
element.addEventListener("pointerdown", drag);
element.addEventListener("pointermove", drag);

document.addEventListener("focusin", (event) => {
  focused = element.contains(event.target) ? name(event.target) ?? focused : null;
});

// A redraw must not take the focus away from what was just used.
watch("value", () => {
  if (!focused || (document.activeElement && document.activeElement !== document.body)) return;
  find(focused)?.focus({ preventScroll: true });
});

// On a narrow screen the image is below the form: go where the progress is.
if (element.closest("#play-picture")) {
  document.addEventListener("click", (event) => {
    if (!event.target.closest("#play-run")) return;
    const status = document.getElementById("play-status");
    const { top, bottom } = status.getBoundingClientRect();
    if (top < 0 || bottom > window.innerHeight) {
      status.scrollIntoView({ block: "start", behavior: still.matches ? "auto" : "smooth" });
    }
  });
}
