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

// One for the whole page: the key of what has the focus, whether a click waits for its answer, and when a part was opened.
const held = (window.kleinHeld ??= { key: null, clicked: false, opened: -Infinity });

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

// Gradio sends the fields of what was just opened their first value once more, when all of them are there: what a quick
// hand has chosen or typed by then is put back, as long as the hand is still there.
const APPEARS_MS = 3000;
const firsts = new WeakMap();
const isTicked = (field) => field.type === "radio" || field.type === "checkbox";
const valueOf = (field) => (isTicked(field) ? field.checked : field.value);

function noteFirst({ target: field }) {
  if (field.matches("input, textarea") && !firsts.has(field)) firsts.set(field, { value: valueOf(field) });
}

function keepFirst({ target: field }) {
  const first = firsts.get(field);
  const appears = () => performance.now() < held.opened + APPEARS_MS && document.activeElement === field;
  if (!first || first.seen || !appears()) return;
  const isKnown = "given" in first;
  first.given = valueOf(field);
  if (isKnown) return;
  requestAnimationFrame(function look() {
    const isBack = valueOf(field) === first.value && first.given !== first.value;
    if (!isBack && appears()) return void requestAnimationFrame(look);
    first.seen = true;
    if (!isBack || !appears()) return;
    if (isTicked(field)) return void field.click();
    field.value = first.given;
    field.dispatchEvent(new Event("input", { bubbles: true }));
  });
}

if (!window.kleinListens) {
  window.kleinListens = true;
  document.addEventListener("klein-go", (event) => goTo(event.detail));
  document.addEventListener("focusin", (event) => { held.key = event.target.dataset?.key ?? null; });
  document.addEventListener("click", ({ target }) => { if (target.closest(".label-wrap, [role=tab]")) held.opened = performance.now(); }, true);
  document.addEventListener("focusin", noteFirst);
  document.addEventListener("input", keepFirst);
  document.addEventListener("pointerdown", (event) => { if (!event.target.closest("[data-key], [data-act]")) held.key = null; });
}

watch("value", giveFocusBack);
