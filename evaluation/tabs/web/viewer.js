// THE viewer of pictures: one alone, two under a slider, side by side, or flickering in one place. It serves every element
// of class "viewer" (templates/viewer.html): panels in the page, and the one dialog, which also walks and rates.
//
//   kleinViewer.show(root, state)   draws a panel; kleinViewer.open(state)   opens the dialog. `state` is any of
//   items    [{ id, src, alt, label, title, where, facts, row, column, rating, shape }]; facts are [name, value] pairs
//   a, b     ids of the picture that is walked from, and of the one beside it
//   mode     "one" | "slider" | "side" | "flicker" | "difference" (A minus B)      all   whether "side" shows every item, not A and B alone
//   title, where   what heads the dialog instead of A's own words, where several are side by side
//   picked(a, b)   A or B was chosen from a list       rate(id, rating)   present: the picture may be rated; 0: not any more
//   closed(id)     the dialog was closed at this picture
//
// Texts travel by textContent only, so a prompt stays inert. All is delegated: a panel may be drawn anew at any time.
window.kleinViewer ??= (() => {
  const FLICKER_MS = 600; // below the three flashes a second of WCAG 2.3.1
  const still = window.matchMedia("(prefers-reduced-motion: reduce)");
  const states = new WeakMap();
  let flickering = [];

  const part = (root, name) => root.querySelector(`[data-part="${name}"]`);
  const rootOf = (target) => target.closest?.(".viewer");
  const dialog = () => document.getElementById("viewer");

  function stateOf(root) {
    if (!states.has(root)) states.set(root, { items: [], a: null, b: null });
    return states.get(root);
  }

  function show(root, changes = {}) {
    const state = Object.assign(stateOf(root), changes);
    const find = (id) => state.items.find((item) => item.id === id);
    const a = find(state.a) ?? state.items[0];
    const b = find(state.b) ?? state.items.find((item) => item !== a) ?? a;
    if (!a) return;
    Object.assign(state, { a: a.id, b: b.id });
    const stage = part(root, "stage");
    kleinZoom.attach(root, { plain: root === dialog() });
    stage.style.setProperty("--shape", a.shape);
    fill(stage.querySelector("figure.a"), a, state.all ? "" : "A");
    fill(stage.querySelector("figure.b"), b, state.all ? "" : "B");
    for (const figure of stage.querySelectorAll("figure.more")) figure.remove();
    for (const item of state.all ? state.items : []) {
      if (item !== a && item !== b) fill(stage.appendChild(newFigure()), item, "");
    }
    for (const side of ["a", "b"]) fillList(part(root, side), state[side], state.items);
    part(root, "swap").closest(".pair").hidden = state.items.length < 2;
    setMode(root, changes.mode ?? root.dataset.mode); // first, as the title of several is for side by side alone
    showTitle(root, state, a);
    showRating(root, state, a);
  }

  function newFigure() {
    const figure = document.createElement("figure");
    figure.className = "more";
    const shot = Object.assign(document.createElement("div"), { className: "shot" });
    shot.append(new Image());
    figure.append(shot, document.createElement("figcaption"));
    return figure;
  }

  function fill(figure, item, side) {
    const [image, caption] = [figure.querySelector("img"), figure.querySelector("figcaption")];
    if (image.getAttribute("src") !== item.src) image.src = item.src;
    image.alt = side ? `${side}: ${item.alt}` : item.alt;
    const facts = (item.facts ?? []).map(([name, value]) => {
      const line = document.createElement("div");
      line.append(name, " ", Object.assign(document.createElement("b"), { textContent: value }));
      return line;
    });
    caption.replaceChildren([side, item.label].filter(Boolean).join(" · "), ...facts);
  }

  function fillList(list, chosen, items) {
    const wanted = items.map((item) => `${item.id} ${item.label}`).join("\n");
    if (list.dataset.wanted !== wanted) {
      list.dataset.wanted = wanted;
      list.replaceChildren(...items.map((item) => new Option(item.label, item.id)));
    }
    list.value = chosen;
  }

  function showTitle(root, state, a) {
    if (!part(root, "title")) return;
    const heads = state.all && root.dataset.mode === "side" && state.title;
    part(root, "title").textContent = heads ? state.title : a.title;
    const place = `${state.items.indexOf(a) + 1} of ${state.items.length}`;
    part(root, "where").textContent = heads ? state.where : [a.where, place].filter(Boolean).join(" · ");
  }

  function showRating(root, state, a) {
    const rating = part(root, "rating");
    if (!rating) return;
    rating.hidden = !state.rate;
    for (const button of rating.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.rating) === Number(a.rating)));
    }
  }

  function setMode(root, mode) {
    root.dataset.mode = mode;
    const stage = part(root, "stage");
    stage.classList.remove("one", "slider", "side", "flicker", "difference");
    stage.classList.add(mode);
    const chosen = root.querySelector(`[data-part="modes"] input[value="${mode}"]`);
    if (chosen) chosen.checked = true;
    flickering = flickering.filter((each) => each !== root);
    if (mode === "flicker" && !still.matches) flickering.push(root);
  }

  const flip = (root) => part(root, "stage").classList.toggle("flipped");
  setInterval(() => {
    flickering = flickering.filter((root) => root.isConnected);
    for (const root of flickering) if (root.offsetParent || root.open) flip(root);
  }, FLICKER_MS);

  function pick(root, a, b) {
    show(root, { a, b });
    stateOf(root).picked?.(a, b);
  }

  /* The next picture in that direction; a place without one is passed over. */
  function walk(root, key) {
    const state = stateOf(root);
    const from = state.items.find((item) => item.id === state.a);
    const along = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[key];
    if (!from || !along) return;
    const steps = (item) => (item.row - from.row) * along[0] + (item.column - from.column) * along[1];
    const ahead = state.items.filter(
      (item) => steps(item) > 0 && (along[0] ? item.column === from.column : item.row === from.row),
    );
    const to = ahead.sort((one, other) => steps(one) - steps(other))[0];
    if (to) show(root, { a: to.id });
  }

  /* The same once more takes it away. */
  function rate(root, count) {
    const state = stateOf(root);
    const item = state.items.find((each) => each.id === state.a);
    if (!item || !state.rate) return;
    const rating = Number(item.rating) === count ? 0 : count;
    item.rating = rating;
    showRating(root, state, item);
    state.rate(item.id, rating);
  }

  function open(changes) {
    const root = dialog();
    if (root.open) return;
    show(root, { b: null, all: false, title: "", where: "", picked: null, rate: null, closed: null, mode: "one", ...changes });
    root.showModal();
    part(root, "close").focus();
  }

  document.addEventListener("change", (event) => {
    const root = rootOf(event.target);
    if (!root) return;
    const state = stateOf(root);
    const { part: name } = event.target.dataset;
    if (name === "a") pick(root, event.target.value, state.b);
    else if (name === "b") pick(root, state.a, event.target.value);
    else if (event.target.closest('[data-part="modes"]')) {
      setMode(root, event.target.value);
      show(root);
    }
  });

  document.addEventListener("click", (event) => {
    const root = rootOf(event.target);
    if (!root) return;
    const button = event.target.closest("button");
    const state = stateOf(root);
    if (event.target === root && root.open) root.close(); // the backdrop
    else if (!button) return;
    else if (button.dataset.part === "swap") pick(root, state.b, state.a);
    else if (button.dataset.part === "close") root.close();
    else if (button.dataset.part === "flip") {
      flickering = flickering.filter((each) => each !== root);
      flip(root);
    } else if (button.dataset.walk) walk(root, button.dataset.walk);
    else if (button.dataset.rating) {
      rate(root, Number(button.dataset.rating));
    }
  });

  document.addEventListener("keydown", (event) => {
    const root = dialog()?.open ? dialog() : rootOf(event.target);
    if (!root || event.ctrlKey || event.metaKey || event.altKey) return;
    const field = event.target.matches("input, select");
    const taken = event.target.matches("select") || (field && /^Arrow/.test(event.key)); // by the field itself
    if (!taken && kleinZoom.key(root, event)) return void event.stopImmediatePropagation();
    if (root !== dialog()) return;
    if (/^Arrow/.test(event.key) && !field) {
      event.preventDefault();
      walk(root, event.key);
    } else if (/^[1-5]$/.test(event.key)) rate(root, Number(event.key));
    else if (event.key.toLowerCase() === "f" && !field) root.close();
    else return;
    event.stopImmediatePropagation();
  });

  document.addEventListener("close", (event) => {
    if (event.target === dialog()) stateOf(event.target).closed?.(stateOf(event.target).a);
  }, true);

  /* The slider: by its range, and by dragging over the picture. */
  const split = (root, percent) => part(root, "stage").style.setProperty("--split", `${percent}%`);
  document.addEventListener("input", (event) => {
    const { part: name } = event.target.dataset;
    const root = rootOf(event.target);
    if (name === "split") split(root, event.target.value);
    if (name !== "gain") return;
    part(root, "stage").style.setProperty("--gain", event.target.value);
    part(root, "gained").textContent = `× ${event.target.value}`;
  });
  for (const kind of ["pointerdown", "pointermove"]) {
    document.addEventListener(kind, (event) => {
      const root = event.buttons & 1 ? rootOf(event.target) : null;
      const stage = root && event.target.closest(".stage.slider");
      if (!stage || kleinZoom.isZoomed(root)) return; // what is zoomed is moved; the divider by its range
      const box = stage.getBoundingClientRect();
      const percent = Math.round((100 * (event.clientX - box.left)) / box.width);
      part(root, "split").value = String(percent);
      split(root, percent);
    });
  }

  return { show, open };
})();
