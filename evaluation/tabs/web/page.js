// What every piece of live HTML does in the page: tell clicks and choices, copy, give the focus back after a redraw.
// `element`, `trigger` and `watch` are given by gr.HTML's js_on_load; a script of a tab that follows may use say, copy, goTo.
// Texts travel by dataset and textContent only, so a prompt stays inert.
//
//   data-act      what is done: told as {act, id, value} by a "click" event, or by the one that data-event names
//   data-id       of which; data-value: with what. Of a field the value is its own, of a box of fields
//                 (data-fields) those of all of them by name, so that the last choice never undoes one before it
//   data-key      the name under which the focus finds it again
//   data-copy     the text to copy; data-copy-of: a selector of the element whose text is

const still = window.matchMedia("(prefers-reduced-motion: reduce)");
const FIELDS = "input, select, textarea";

// One for the whole page: the key of what has the focus, and whether a click waits for its answer.
const held = (window.kleinHeld ??= { key: null, clicked: false });

function say(act, id = "", value = null, event = "click") {
  trigger(event, { act, id, value });
}

function tell(source, value) {
  const { act, id, event } = source.dataset;
  say(act, id ?? "", value ?? source.dataset.value ?? null, event || "click");
}

element.addEventListener("click", (event) => {
  const copied = event.target.closest("[data-copy], [data-copy-of]");
  if (copied && element.contains(copied)) {
    const { copy: text, copyOf: selector } = copied.dataset;
    return void copy(text ?? element.querySelector(selector).textContent, copied);
  }
  const source = event.target.closest("[data-act]");
  if (!source || !element.contains(source) || source.matches(FIELDS) || "fields" in source.dataset) return;
  if (event.target.closest(FIELDS)) return; // told when it has changed, if it is to be
  if (!source.matches("button") && getSelection().toString()) return; // a text was marked, nothing clicked
  const named = source.dataset.key === undefined ? source.querySelector("[data-key]") : source; // a row: its first button
  Object.assign(held, { key: named?.dataset.key ?? null, clicked: true });
  tell(source);
});

element.addEventListener("change", (event) => {
  const field = event.target;
  const source = field.closest("[data-act]");
  if (!source || !(source === field || "fields" in source.dataset)) return;
  if (source === field) return void tell(source, field.type === "checkbox" ? field.checked : field.value);
  const named = [...source.querySelectorAll(":is(input, select, textarea)[name]")];
  tell(source, Object.fromEntries(named.filter((each) => each.type !== "radio" || each.checked).map((each) => [each.name, each.value])));
});

// The clipboard is there on https and localhost only; elsewhere the old command is tried.
async function write(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const active = document.activeElement;
    const box = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(box);
    box.select();
    const done = document.execCommand("copy");
    box.remove();
    active?.focus();
    return done;
  }
}

async function copy(text, button) {
  const label = button.textContent;
  button.textContent = (await write(text)) ? "Copied" : "Not copied";
  setTimeout(() => { button.textContent = label; }, 1500);
}

// A redraw takes what had the focus away, or leaves the focus on what came to stand there. It goes back to the element of
// the same key, in whichever piece that now is.
function giveFocusBack() {
  const active = document.activeElement;
  const lost = active === document.body || (active.dataset.key !== undefined && active.dataset.key !== held.key);
  const found = held.key && lost && element.querySelector(`[data-key="${CSS.escape(held.key)}"]`);
  if (!found) return;
  found.focus({ preventScroll: true });
  if (held.clicked) found.scrollIntoView({ block: "nearest" });
  held.clicked = false;
}

// On a narrow screen what is told stands below what was pressed: go there, unless it is in sight.
function goTo(id) {
  const part = document.getElementById(id);
  const { top, bottom } = part?.getBoundingClientRect() ?? {};
  if (top < 0 || bottom > window.innerHeight) part.scrollIntoView({ block: "start", behavior: still.matches ? "auto" : "smooth" });
}

if (!window.kleinListens) {
  window.kleinListens = true;
  document.addEventListener("klein-go", (event) => goTo(event.detail));
  document.addEventListener("focusin", (event) => { held.key = event.target.dataset?.key ?? null; });
  document.addEventListener("pointerdown", (event) => { if (!event.target.closest("[data-key], [data-act]")) held.key = null; });
}

watch("value", giveFocusBack);
