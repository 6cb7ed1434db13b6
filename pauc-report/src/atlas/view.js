// The part of the map that is seen: its center, and CSS pixels per unit of the map.
"use strict";

const view = (() => {
  const MOST = 3000;
  const state = { x: 0.5, y: 0.5, scale: 1, width: 1, height: 1 };
  const bounds = { left: 0, right: 1, top: 0, bottom: 1 };
  let whole = 1;
  let motion = 0;
  // Pixels at the left that something covers when the whole map is shown.
  let covered = 0;

  function measure() {
    const reduce = (values, by, from) => values.reduce((a, b) => by(a, b), from);
    bounds.left = reduce(data.xs, Math.min, Infinity);
    bounds.right = reduce(data.xs, Math.max, -Infinity);
    bounds.top = reduce(data.ys, Math.min, Infinity);
    bounds.bottom = reduce(data.ys, Math.max, -Infinity);
  }
  measure();

  function clamp() {
    state.scale = Math.min(Math.max(state.scale, whole * 0.5), whole * MOST);
    state.x = Math.min(Math.max(state.x, bounds.left), bounds.right);
    state.y = Math.min(Math.max(state.y, bounds.top), bounds.bottom);
  }

  /** Moves to another place within a quarter of a second, unless motion is unwelcome. */
  function glide(target, redraw) {
    cancelAnimationFrame(motion);
    const from = { ...state };
    const start = performance.now();
    const time = matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 250;
    const frame = (now) => {
      const t = time ? Math.min(1, Math.max(0, (now - start) / time)) : 1;
      const eased = t * (2 - t);
      state.scale = from.scale * (target.scale / from.scale) ** eased;
      state.x = from.x + (target.x - from.x) * eased;
      state.y = from.y + (target.y - from.y) * eased;
      clamp();
      redraw();
      if (t < 1) motion = requestAnimationFrame(frame);
    };
    frame(start);
  }

  return {
    state,

    /** The magnification: 1 shows the whole map. */
    get zoom() {
      return state.scale / whole;
    },

    toScreen: (i) => [
      (data.xs[i] - state.x) * state.scale + state.width / 2,
      (data.ys[i] - state.y) * state.scale + state.height / 2,
    ],

    toMap: (x, y) => [
      (x - state.width / 2) / state.scale + state.x,
      (y - state.height / 2) / state.scale + state.y,
    ],

    /** Takes the size of the canvas, and the width of what covers its left; keeps what is seen. */
    resize(width, height, left = covered) {
      covered = left;
      const zoom = state.scale / whole;
      const extent = [bounds.right - bounds.left || 1, bounds.bottom - bounds.top || 1];
      whole = Math.max(1, Math.min((width - 48 - covered) / extent[0], (height - 48) / extent[1]));
      Object.assign(state, { width, height, scale: whole * zoom });
    },

    pan(dx, dy) {
      cancelAnimationFrame(motion);
      state.x -= dx / state.scale;
      state.y -= dy / state.scale;
      clamp();
    },

    /** Magnifies by a factor around a place on the screen. */
    zoomAt(x, y, factor) {
      cancelAnimationFrame(motion);
      const [mapX, mapY] = view.toMap(x, y);
      state.scale *= factor;
      clamp();
      state.x = mapX - (x - state.width / 2) / state.scale;
      state.y = mapY - (y - state.height / 2) / state.scale;
      clamp();
    },

    /** Shows the whole map. */
    fit(redraw, at_once = false) {
      const x = (bounds.left + bounds.right) / 2 - covered / 2 / whole;
      const middle = { x: Math.max(bounds.left, x), y: (bounds.top + bounds.bottom) / 2 };
      if (at_once) Object.assign(state, middle, { scale: whole });
      else glide({ ...middle, scale: whole }, redraw);
    },

    /** Brings an image to the center, magnified at least so far that thumbnails are shown. */
    goTo(i, scale, redraw) {
      glide({ x: data.xs[i], y: data.ys[i], scale: Math.max(state.scale, scale) }, redraw);
    },

    /** Returns the image nearest to a place on the screen, within a distance in pixels; -1 if there is none. */
    imageAt(x, y, within) {
      const [mapX, mapY] = view.toMap(x, y);
      let [best, least] = [-1, (within / state.scale) ** 2];
      for (let i = 0; i < data.count; i++) {
        const distance = (data.xs[i] - mapX) ** 2 + (data.ys[i] - mapY) ** 2;
        if (distance < least) [best, least] = [i, distance];
      }
      return best;
    },
  };
})();
