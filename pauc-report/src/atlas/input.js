// Mouse, touch, pen and keyboard on the map.
"use strict";

const input = (() => {
  const { canvas, shown } = draw;
  const tip = document.getElementById("tip");
  const pointers = new Map();
  const TAP = 6;
  let isLasso = false;
  let travelled = 0;
  let on = { select: () => {}, lasso: () => {}, lassoMode: () => {}, escape: () => {}, step: () => {} };

  function placeOf(event) {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  function redraw() {
    draw.moving();
  }

  /** Shows the picture and name of an image beside the pointer. */
  function hover(i, x, y) {
    canvas.style.cursor = isLasso ? "crosshair" : i >= 0 ? "pointer" : "grab";
    if (i === shown.hovered && i < 0) return;
    if (i !== shown.hovered) {
      shown.hovered = i;
      draw.invalidate();
      tip.hidden = i < 0;
      if (i < 0) return;
      const lines = [data.nameOf(i)];
      if (data.labels) lines.push(data.className(data.labels[i]));
      if (data.prototypes && data.prototypes.of[i] >= 0) lines.push(`prototype ${data.prototypes.of[i]}`);
      lines.push(`more typical than ${Math.round(100 * data.moreTypicalThan(i))} %`);
      const texts = lines.map((line, n) => {
        const element = document.createElement("div");
        element.className = n ? "note" : "name";
        element.textContent = line;
        return element;
      });
      tip.replaceChildren(...(sheets.areThere ? [sheets.element(i, 112)] : []), ...texts);
    }
    const left = x + 18 + tip.offsetWidth > view.state.width ? x - 18 - tip.offsetWidth : x + 18;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, Math.min(y + 14, view.state.height - tip.offsetHeight - 4))}px`;
  }

  function setLasso(value) {
    isLasso = value;
    canvas.style.cursor = value ? "crosshair" : "grab";
    on.lassoMode(value);
  }

  /** Returns the images within a polygon on the screen. */
  function within(polygon) {
    const corners = polygon.map(([x, y]) => view.toMap(x, y));
    const inside = [];
    for (let i = 0; i < data.count; i++) {
      const [x, y] = [data.xs[i], data.ys[i]];
      let isInside = false;
      for (let a = 0, b = corners.length - 1; a < corners.length; b = a++) {
        const [[ax, ay], [bx, by]] = [corners[a], corners[b]];
        if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) isInside = !isInside;
      }
      if (isInside) inside.push(i);
    }
    return inside;
  }

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, placeOf(event));
    if (pointers.size === 1) travelled = 0;
    if (pointers.size === 1 && (isLasso || event.shiftKey)) shown.lasso = [placeOf(event)];
    if (pointers.size === 2) shown.lasso = null;
    hover(-1, 0, 0);
  });

  /** Moves the map by the change of two fingers: their middle pans, their distance magnifies. */
  function pinch(id, to) {
    const [other] = [...pointers.keys()].filter((key) => key !== id);
    const [fixed, from] = [pointers.get(other), pointers.get(id)];
    const distance = ([x, y]) => Math.hypot(x - fixed[0], y - fixed[1]);
    view.pan((to[0] - from[0]) / 2, (to[1] - from[1]) / 2);
    const middle = [(to[0] + fixed[0]) / 2, (to[1] + fixed[1]) / 2];
    view.zoomAt(...middle, Math.max(0.2, distance(to) / Math.max(1, distance(from))));
    redraw();
  }

  canvas.addEventListener("pointermove", (event) => {
    const to = placeOf(event);
    const from = pointers.get(event.pointerId);
    if (!from) {
      if (event.pointerType !== "touch") hover(draw.imageAt(...to, 12), ...to);
      return;
    }
    travelled += Math.hypot(to[0] - from[0], to[1] - from[1]);
    if (pointers.size === 2) pinch(event.pointerId, to);
    else if (shown.lasso) {
      shown.lasso.push(to);
      draw.invalidate();
    } else {
      view.pan(to[0] - from[0], to[1] - from[1]);
      redraw();
    }
    pointers.set(event.pointerId, to);
  });

  function release(event) {
    if (!pointers.delete(event.pointerId) || pointers.size) return;
    const polygon = shown.lasso;
    shown.lasso = null;
    if (polygon && polygon.length > 2 && travelled > TAP) {
      setLasso(false);
      on.lasso(within(polygon));
    } else if (event.type === "pointerup" && travelled <= TAP) {
      on.select(draw.imageAt(...placeOf(event), event.pointerType === "touch" ? 24 : 12));
    }
    draw.invalidate();
  }
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => hover(-1, 0, 0));

  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const pixels = event.deltaY * (event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 400 : 1);
      view.zoomAt(...placeOf(event), Math.exp(-Math.max(-240, Math.min(240, pixels)) * 0.0022));
      hover(-1, 0, 0);
      redraw();
    },
    { passive: false },
  );

  canvas.addEventListener("dblclick", (event) => {
    view.zoomAt(...placeOf(event), 2);
    redraw();
  });

  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const arrow = ARROWS[event.key];
    const middle = [view.state.width / 2, view.state.height / 2];
    if (arrow && event.shiftKey) on.step(arrow);
    else if (arrow) view.pan(-80 * arrow[0], -80 * arrow[1]);
    else if (event.key === "+" || event.key === "=") view.zoomAt(...middle, 1.4);
    else if (event.key === "-" || event.key === "_") view.zoomAt(...middle, 1 / 1.4);
    else if (event.key === "0") view.fit(redraw);
    else if (event.key === "Enter" || event.key === " ") on.select(draw.imageAt(...middle, Infinity));
    else return;
    event.preventDefault();
    hover(-1, 0, 0);
    redraw();
  });

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      shown.lasso = null;
      setLasso(false);
      on.escape();
    } else if (event.key === "/" && !/INPUT|SELECT/.test(document.activeElement.tagName)) {
      event.preventDefault();
      document.getElementById("search").focus();
    }
  });

  return {
    setLasso,
    get isLasso() {
      return isLasso;
    },
    listen(handlers) {
      on = { ...on, ...handlers };
    },
  };
})();
