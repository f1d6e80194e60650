// The stage of a blind vote: shows a pair, holds the next one ready, hears buttons, keys and touch. Continues page.js.
// The next pair is shown with the vote, not with its answer; what is pressed meanwhile waits for the answer.

const partOf = (name) => element.querySelector(`[data-part="${name}"]`);
const SIDES = ["left", "right"];
const KEYS = { ArrowLeft: "left", ArrowUp: "left", ArrowRight: "right", ArrowDown: "right", t: "tie", n: "neither", u: "undo", r: "reveal" };
const stage = { shown: null, coming: null, ready: [], asked: false, pressed: null };

function show(pair) {
  stage.shown = pair;
  partOf("open").hidden = !pair;
  if (!pair) return;
  for (const side of SIDES) partOf(side).src = pair[side];
  partOf("prompt").textContent = pair.prompt;
  partOf("pair").style.setProperty("--ratio", pair.size[0] / pair.size[1]);
}

function prepare(pair) {
  stage.coming = pair ?? null;
  stage.ready = pair ? SIDES.map((side) => Object.assign(new Image(), { src: pair[side] })) : [];
}

function refresh() {
  const { turn, run, pairs, said, progress, note, enough, own, votes } = props.value;
  if (turn === stage.turn) return;
  const opened = run !== stage.run;
  Object.assign(stage, { turn, run, asked: false });
  const [first, next] = pairs;
  if (first?.id !== stage.shown?.id) show(first ?? null);
  prepare(next);
  partOf("foot").hidden = !run;
  partOf("said").textContent = said;
  partOf("progress").style.width = `${progress}%`;
  partOf("bar").setAttribute("aria-label", `The order is clear to ${progress}%`);
  partOf("note").textContent = note;
  partOf("undo").disabled = !own;
  partOf("reveal").disabled = !votes;
  partOf("reveal").classList.toggle("main", enough);
  if (opened && first) setTimeout(() => element.scrollIntoView({ block: "start" })); // all of the pair, and its buttons
  const pressed = stage.pressed;
  stage.pressed = null;
  if (pressed) press(pressed);
}

function press(what) {
  if (stage.asked) stage.pressed = what;
  else if (what === "reveal") reveal();
  else if (what === "undo") ask("undo", null);
  else if (stage.shown && partOf("open").offsetParent) { // not while the result is there instead
    ask(what, stage.coming);
    show(stage.coming);
    prepare(null);
  }
}

function ask(what, next) {
  stage.asked = true;
  if (what === "undo") say("undo", stage.shown?.id ?? "");
  else say("vote", stage.shown.id, { outcome: what, next: next?.id ?? "" });
}

function reveal() {
  if (props.value.votes) say("reveal");
}

element.addEventListener("click", (event) => {
  const source = event.target.closest("[data-press]");
  if (source) press(source.dataset.press);
  else if (event.target === partOf("link")) {
    const page = document.referrer && window !== window.parent ? document.referrer : location.href;
    const link = new URL(page);
    link.search = "";
    link.searchParams.set("vote", props.value.run);
    copy(link.href, event.target);
  }
});

document.addEventListener("keydown", (event) => {
  const what = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!what || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (!element.isConnected || !element.offsetParent || partOf("foot").hidden) return; // another tab is open
  if (event.target.closest("input, textarea, select, [contenteditable], [role=tab], [role=listbox], dialog[open]")) return;
  event.preventDefault();
  press(what);
});

// The result stands in the place of the stage: the focus goes to what has come.
new MutationObserver(() => {
  const heading = document.querySelector("#vote-heading");
  if (heading && heading !== stage.heading) {
    heading.focus({ preventScroll: true });
    goTo("vote-result");
  } else if (!heading && stage.heading && document.activeElement === document.body) {
    element.querySelector(".pick").focus({ preventScroll: true });
  }
  stage.heading = heading;
}).observe(document.getElementById("vote-result"), { childList: true, subtree: true });

watch("value", refresh);
refresh();
