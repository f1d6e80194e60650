// What the Playground adds to page.js, which stands before it: a button that opens a list of models, walked by keys, and
// programs that are shown as they are copied.

const find = (selector) => element.querySelector(selector);
const options = () => [...element.querySelectorAll('[role="option"]')];
let typed = { text: "", at: 0 };

function toggle(opens, refocus = false) {
  const [menu, button] = [find(".picker-menu"), find(".picker-button")];
  if (!menu || menu.hidden !== opens) return;
  menu.hidden = !opens;
  button.setAttribute("aria-expanded", String(opens));
  if (opens) mark(find('[aria-selected="true"]') ?? options()[0]);
  else if (refocus) button.focus();
}

function mark(option) {
  option?.focus({ preventScroll: true });
  option?.scrollIntoView({ block: "nearest" });
}

function walk(event, option) {
  const all = options();
  const at = all.indexOf(option);
  const to = {
    ArrowDown: Math.min(at + 1, all.length - 1), ArrowUp: Math.max(at - 1, 0), Home: 0, End: all.length - 1,
  }[event.key];
  if (to !== undefined) mark(all[to]);
  else if (event.key === "Enter" || event.key === " ") option.click();
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
  mark([...all.slice(after), ...all.slice(0, after)].find((option) =>
    option.querySelector(".title").textContent.toLowerCase().startsWith(typed.text)));
}

async function show(button) {
  for (const each of element.querySelectorAll("[data-language]")) each.setAttribute("aria-expanded", String(each === button));
  for (const each of element.querySelectorAll(".program")) each.hidden = each.ariaLabel !== button.dataset.language;
  const code = find(".program:not([hidden]) code");
  find(".copied").textContent = code && (await write(code.textContent)) ? `Copied as ${button.dataset.language}.` : "";
}

element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-language]");
  if (button) show(button);
  else if (event.target.closest(".picker-button")) toggle(find(".picker-menu").hidden, true);
  else toggle(false, Boolean(event.target.closest('[role="option"]')));
});
element.addEventListener("keydown", (event) => {
  const option = event.target.closest('[role="option"]');
  if (event.key === "Escape") toggle(false, true);
  else if (option) walk(event, option);
  else if (event.target.closest(".picker-button") && ["ArrowDown", "ArrowUp"].includes(event.key)) {
    event.preventDefault();
    toggle(true);
  }
});
element.addEventListener("focusout", (event) => {
  if (!find(".picker")?.contains(event.relatedTarget)) toggle(false);
});
