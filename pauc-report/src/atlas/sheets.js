// Thumbnails: parts of the sheets at the end of the page, decoded when they are needed.
"use strict";

const sheets = (() => {
  const CELLS = 16;
  const MOST_BYTES = 192e6;
  const decoded = new Map();
  let onReady = () => {};

  /** Starts to decode a sheet, and forgets those that were not used for the longest time. */
  function open(number) {
    const element = document.querySelectorAll("script.sheet")[number];
    // The end of the page, or of this sheet, may not have arrived.
    if (!element || (document.readyState === "loading" && !element.nextElementSibling)) return null;
    const sheet = { image: new Image(), isReady: false };
    sheet.image.onload = () => {
      sheet.isReady = true;
      onReady();
    };
    sheet.image.src = `data:image/jpeg;base64,${element.textContent}`;
    const most = Math.max(8, Math.floor(MOST_BYTES / (4 * (CELLS * data.thumbnails.cell) ** 2)));
    while (decoded.size >= most) decoded.delete(decoded.keys().next().value);
    return sheet;
  }

  function sheetOf(i) {
    const number = Math.floor(i / (CELLS * CELLS));
    const sheet = decoded.get(number) ?? open(number);
    if (sheet) {
      // The map keeps the order of insertion: the newest is last.
      decoded.delete(number);
      decoded.set(number, sheet);
    }
    return sheet;
  }

  /** Draws the thumbnail of an image into a box, with its aspect ratio. Returns whether it was there. */
  function draw(context, i, left, top, side) {
    const sheet = sheetOf(i);
    if (!sheet?.isReady) return null;
    const { cell } = data.thumbnails;
    const place = i % (CELLS * CELLS);
    const [width, height] = [data.sizes[2 * i], data.sizes[2 * i + 1]];
    const scale = side / Math.max(width, height);
    const box = [left + (side - width * scale) / 2, top + (side - height * scale) / 2, width * scale, height * scale];
    // Pixels of tiny images stay sharp.
    context.imageSmoothingEnabled = cell > 32;
    context.imageSmoothingQuality = "high";
    const from = [(place % CELLS) * cell, Math.floor(place / CELLS) * cell, width, height];
    context.drawImage(sheet.image, ...from, ...box);
    return box;
  }

  /** Canvases that wait for their sheet, or to come into view. */
  const waiting = new Map();

  function paint(canvas, i) {
    const side = canvas.width;
    if (draw(canvas.getContext("2d"), i, 0, 0, side)) waiting.delete(canvas);
  }

  const inView = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      inView.unobserve(entry.target);
      const i = Number(entry.target.dataset.image);
      waiting.set(entry.target, i);
      paint(entry.target, i);
    }
  });

  return {
    areThere: data.thumbnails !== null,
    draw,

    /** Returns an element with the thumbnail of an image, `side` CSS pixels wide. */
    element(i, side) {
      const canvas = document.createElement("canvas");
      canvas.className = "thumbnail";
      canvas.width = canvas.height = side * Math.min(2, Math.ceil(devicePixelRatio));
      canvas.style.width = canvas.style.height = `${side}px`;
      canvas.dataset.image = i;
      canvas.setAttribute("aria-hidden", "true");
      inView.observe(canvas);
      return canvas;
    },

    /** Calls `redraw` whenever a sheet has arrived. */
    whenReady(redraw) {
      onReady = () => {
        for (const [canvas, i] of waiting) {
          if (canvas.isConnected) paint(canvas, i);
          else waiting.delete(canvas);
        }
        redraw();
      };
      document.addEventListener("DOMContentLoaded", onReady);
    },
  };
})();
