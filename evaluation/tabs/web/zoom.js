// Look closer: one zoom and one place for every picture of a surface, so that they are compared at the same spot.
//
//   kleinZoom.attach(surface, { plain })   listens on a surface: an element with pictures (.cell or .shot around an img) and
//                                          perhaps buttons [data-zoom-by] and a [data-part="zoomed"] that says how much.
//                                          `plain`: the wheel zooms by itself; else it scrolls, and Ctrl + wheel zooms
//   kleinZoom.key(surface, event)          + - 0 and Shift + arrows; whether it was one of them
//   kleinZoom.isZoomed(surface)
//
// A place is a share of the picture, so it holds for pictures of any size. One rule of a style sheet moves them all: a custom
// property would make the browser look at every element of a grid of 400 cells again. Dragging moves a picture that is zoomed;
// two fingers zoom it; a click that ends a drag is none.
window.kleinZoom ??= (() => {
  const [MOST, STEP, DRAG_PX] = [16, 1.25, 4];
  const PICTURE = ".cell.done, .shot";
  const views = new WeakMap();
  const rules = new WeakMap();
  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets.push(sheet);
  let drag = null;

  /* The rule that places the pictures of a surface; made when it is zoomed for the first time. */
  function ruleOf(surface) {
    if (!rules.has(surface)) {
      surface.dataset.zoom = String(sheet.cssRules.length);
      const where = `[data-zoom="${surface.dataset.zoom}"] :is(${PICTURE}) > img`;
      rules.set(surface, sheet.cssRules[sheet.insertRule(`${where} { transform-origin: 0 0; }`, sheet.cssRules.length)]);
    }
    return rules.get(surface);
  }

  const viewOf = (surface) => views.get(surface) ?? { zoom: 1, x: 0, y: 0 };
  const isZoomed = (surface) => viewOf(surface).zoom > 1;
  const within = (value, low, high) => Math.min(Math.max(value, low), high);

  function move(surface, zoom, x, y) {
    const to = within(zoom, 1, MOST);
    const view = { zoom: to, x: within(x, 1 - to, 0), y: within(y, 1 - to, 0), waits: viewOf(surface).waits };
    views.set(surface, view);
    if (view.waits) return;
    view.waits = true; // one change of style a frame, however many events there are
    requestAnimationFrame(() => draw(surface));
  }

  function draw(surface) {
    const view = viewOf(surface);
    view.waits = false;
    for (const [name, on] of [["zoomed", view.zoom > 1], ["magnified", view.zoom >= 3]]) {
      if (surface.classList.contains(name) !== on) surface.classList.toggle(name, on);
    }
    const places = `translate(${100 * view.x}%, ${100 * view.y}%) scale(${view.zoom})`;
    ruleOf(surface).style.transform = view.zoom > 1 ? places : "";
    const said = surface.querySelector('[data-part="zoomed"]');
    if (said) said.textContent = `${Math.round(view.zoom * 100)}%`;
  }

  /* Zoom by a factor round a point of the screen; without one, round the middle. */
  function zoomBy(surface, factor, picture, point) {
    const view = viewOf(surface);
    const box = picture?.getBoundingClientRect();
    const [across, down] = box && point ? [(point.x - box.left) / box.width, (point.y - box.top) / box.height] : [0.5, 0.5];
    const zoom = within(view.zoom * factor, 1, MOST);
    const grown = zoom / view.zoom;
    move(surface, zoom, across - (across - view.x) * grown, down - (down - view.y) * grown);
  }

  function panBy(surface, x, y) {
    const view = viewOf(surface);
    move(surface, view.zoom, view.x + x, view.y + y);
  }

  function key(surface, event) {
    const along = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (event.key === "+" || event.key === "=") zoomBy(surface, STEP);
    else if (event.key === "-") zoomBy(surface, 1 / STEP);
    else if (event.key === "0") move(surface, 1, 0, 0);
    else if (event.shiftKey && along && isZoomed(surface)) panBy(surface, along[0] / 4, along[1] / 4);
    else return false;
    event.preventDefault();
    return true;
  }

  const fingers = (touches) => {
    const [one, other] = touches;
    const [x, y] = [(one.clientX + other.clientX) / 2, (one.clientY + other.clientY) / 2];
    return { x, y, apart: Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) };
  };

  function attach(surface, { plain = false } = {}) {
    if (views.has(surface)) return;
    views.set(surface, viewOf(surface));
    surface.addEventListener("wheel", (event) => {
      const picture = event.target.closest(PICTURE);
      if (!picture || !(plain || event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      const pixels = event.deltaY * (event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1);
      const speed = Math.abs(pixels) < 50 ? 0.01 : 0.002; // two fingers on a pad send many small steps, a wheel few large ones
      zoomBy(surface, Math.exp(-pixels * speed), picture, { x: event.clientX, y: event.clientY });
    }, { passive: false });

    let pinch = null;
    surface.addEventListener("touchstart", (event) => {
      const picture = event.target.closest(PICTURE);
      pinch = event.touches.length === 2 && picture ? { picture, ...fingers(event.touches) } : null;
    }, { passive: true });
    surface.addEventListener("touchmove", (event) => {
      if (!pinch || event.touches.length !== 2) return;
      event.preventDefault();
      drag = null;
      const now = fingers(event.touches);
      const box = pinch.picture.getBoundingClientRect();
      zoomBy(surface, now.apart / pinch.apart, pinch.picture, now);
      panBy(surface, (now.x - pinch.x) / box.width, (now.y - pinch.y) / box.height);
      Object.assign(pinch, now);
    }, { passive: false });

    surface.addEventListener("pointerdown", (event) => {
      const picture = event.target.closest(PICTURE);
      if (!picture || !isZoomed(surface) || event.button || event.defaultPrevented) return;
      const box = picture.getBoundingClientRect();
      drag = { surface, x: event.clientX, y: event.clientY, width: box.width, height: box.height, moved: false };
    });
    surface.addEventListener("dragstart", (event) => { if (isZoomed(surface)) event.preventDefault(); });
    surface.addEventListener("click", (event) => {
      const button = event.target.closest("[data-zoom-by]");
      if (!button) return;
      if (button.dataset.zoomBy === "0") move(surface, 1, 0, 0);
      else zoomBy(surface, STEP ** Number(button.dataset.zoomBy));
    });
  }

  document.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const [x, y] = [event.clientX - drag.x, event.clientY - drag.y];
    if (!drag.moved && Math.hypot(x, y) < DRAG_PX) return;
    panBy(drag.surface, x / drag.width, y / drag.height);
    Object.assign(drag, { x: event.clientX, y: event.clientY, moved: true });
  });
  for (const end of ["pointerup", "pointercancel"]) {
    document.addEventListener(end, () => {
      const moved = drag?.moved;
      drag = null;
      if (!moved) return;
      const none = (event) => event.stopPropagation();
      document.addEventListener("click", none, { capture: true, once: true });
      setTimeout(() => document.removeEventListener("click", none, { capture: true }));
    });
  }

  return { attach, key, isZoomed };
})();
