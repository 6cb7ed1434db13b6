// Draws the map: points as disks, thumbnails where there is space for them, and what is selected.
"use strict";

const draw = (() => {
  const canvas = document.getElementById("map");
  const context = canvas.getContext("2d", { alpha: false });
  // Stamps of disks at this many places between two pixels, along each axis.
  const PLACES = 4;
  // Pixels of a square in which one thumbnail is drawn: from SQUARE up to twice as many.
  const SQUARE = 52;
  // Thumbnails appear when this many images share such a square.
  const CROWD = 10;
  // A frame that takes longer lowers the resolution while the map moves.
  const SLOW = 10;
  const shown = { paint: null, shades: new Uint8Array(data.count), selected: -1, hovered: -1, lasso: null };
  const frames = [];
  const boxes = [];
  let pixels = null;
  let buffer = null;
  let stamps = null;
  let scheduled = false;
  let sharpen = 0;
  let isMoving = false;

  const Shade = { NORMAL: 0, DIM: 1, BRIGHT: 2 };

  /** The images per unit of area in the parts of the map that have any. */
  const density = (() => {
    const side = Math.max(4, Math.min(64, Math.floor(Math.sqrt(data.count / 4))));
    const occupied = new Set();
    for (let i = 0; i < data.count; i++) {
      occupied.add(Math.floor(data.xs[i] * side) * (side + 1) + Math.floor(data.ys[i] * side));
    }
    return (data.count * side * side) / Math.max(1, occupied.size);
  })();

  /** The scale from which on thumbnails are shown. */
  const thumbnailScale = Math.sqrt((density * (1.5 * SQUARE) ** 2) / CROWD);

  function ratio() {
    const sharp = Math.min(2, devicePixelRatio || 1);
    return isMoving && shown.isSlow ? 1 : sharp;
  }

  /** Gives the canvas as many pixels as its place on the page has. */
  function resize() {
    const scale = ratio();
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    view.resize(width, height);
    const size = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
    if (canvas.width === size[0] && canvas.height === size[1] && buffer) return;
    [canvas.width, canvas.height] = size;
    pixels = context.createImageData(size[0], size[1]);
    buffer = new Uint32Array(pixels.data.buffer);
  }

  /** Returns stamps of a disk: for each place between pixels, offsets and opacities out of 256. */
  function makeStamps(radius, opacity) {
    const reach = Math.ceil(radius + 1);
    const all = [];
    for (let place = 0; place < PLACES * PLACES; place++) {
      const [offsetX, offsetY] = [(place % PLACES) / PLACES, Math.floor(place / PLACES) / PLACES];
      const stamp = [];
      for (let y = -reach; y <= reach; y++) {
        for (let x = -reach; x <= reach; x++) {
          const distance = Math.hypot(x - offsetX, y - offsetY);
          const alpha = Math.round(256 * opacity * Math.min(1, Math.max(0, radius + 0.5 - distance)));
          if (alpha > 0) stamp.push(x, y, alpha);
        }
      }
      all.push(Int16Array.from(stamp));
    }
    return { radius, opacity, reach, all };
  }

  function stampsFor(radius, opacity) {
    stamps ??= new Map();
    const key = `${radius.toFixed(2)} ${opacity}`;
    if (!stamps.has(key)) {
      if (stamps.size > 32) stamps.clear();
      stamps.set(key, makeStamps(radius, opacity));
    }
    return stamps.get(key);
  }

  /** Blends a color into a pixel: two channels of eight bits at a time. */
  function blend(at, color, alpha) {
    const below = buffer[at];
    const odd = (Math.imul(below & 0xff00ff, 256 - alpha) + Math.imul(color & 0xff00ff, alpha)) >>> 8;
    const green = (Math.imul((below >>> 8) & 0xff, 256 - alpha) + Math.imul((color >>> 8) & 0xff, alpha)) & 0xff00;
    buffer[at] = 0xff000000 | (odd & 0xff00ff) | green;
  }

  /** Draws all images of a shade as disks. */
  function drawDisks(shade, radius, opacity) {
    const { width, height } = canvas;
    const scale = ratio() * view.state.scale;
    const { reach, all } = stampsFor(radius * ratio(), opacity);
    const { of, pixels: palette } = shown.paint;
    const [shiftX, shiftY] = [width / 2 - view.state.x * scale, height / 2 - view.state.y * scale];
    for (let i = 0; i < data.count; i++) {
      if (shown.shades[i] !== shade) continue;
      const [x, y] = [data.xs[i] * scale + shiftX, data.ys[i] * scale + shiftY];
      const [column, row] = [Math.floor(x), Math.floor(y)];
      if (column < -reach || row < -reach || column >= width + reach || row >= height + reach) continue;
      const place = Math.floor((y - row) * PLACES) * PLACES + Math.floor((x - column) * PLACES);
      const stamp = all[place];
      const color = palette[of[i]];
      if (column < reach || row < reach || column + reach >= width || row + reach >= height) {
        for (let s = 0; s < stamp.length; s += 3) {
          const [px, py] = [column + stamp[s], row + stamp[s + 1]];
          if (px >= 0 && py >= 0 && px < width && py < height) blend(py * width + px, color, stamp[s + 2]);
        }
        continue;
      }
      const start = row * width + column;
      for (let s = 0; s < stamp.length; s += 3) blend(start + stamp[s + 1] * width + stamp[s], color, stamp[s + 2]);
    }
  }

  /** Chooses one image for every square of the map, the same while the map is panned. */
  function chooseThumbnails() {
    const side = 2 ** Math.ceil(Math.log2(SQUARE / view.state.scale));
    const [left, top] = view.toMap(-2 * SQUARE, -2 * SQUARE).map((v) => Math.floor(v / side));
    const [right, bottom] = view
      .toMap(view.state.width + 2 * SQUARE, view.state.height + 2 * SQUARE)
      .map((v) => Math.floor(v / side));
    const columns = right - left + 1;
    const chosen = new Int32Array(columns * (bottom - top + 1)).fill(-1);
    // A fixed order that has nothing to do with places.
    const rank = (i) => Math.imul(i + 1, 0x9e3779b1) >>> 0;
    for (let i = 0; i < data.count; i++) {
      const [column, row] = [Math.floor(data.xs[i] / side), Math.floor(data.ys[i] / side)];
      if (column < left || column > right || row < top || row > bottom) continue;
      const square = (row - top) * columns + column - left;
      const other = chosen[square];
      const isBetter =
        other < 0 || (shown.shades[i] !== shown.shades[other] ? shown.shades[other] === Shade.DIM : rank(i) < rank(other));
      if (isBetter) chosen[square] = i;
    }
    return { side, left, top, columns, chosen };
  }

  /** Draws a thumbnail with a frame in the color of its point. */
  function drawThumbnail(i, left, top, side) {
    const box = sheets.draw(context, i, left, top, side);
    if (!box) return;
    context.globalAlpha = 1;
    context.lineWidth = 2;
    context.strokeStyle = shown.paint.css[shown.paint.of[i]];
    context.strokeRect(box[0] - 1, box[1] - 1, box[2] + 2, box[3] + 2);
    boxes.push({ i, left: box[0], top: box[1], right: box[0] + box[2], bottom: box[1] + box[3] });
  }

  function drawThumbnails() {
    boxes.length = 0;
    if (!sheets.areThere || view.state.scale < thumbnailScale) return;
    const { side, left, top, columns, chosen } = chooseThumbnails();
    const square = side * view.state.scale;
    const size = Math.round(square * 0.8);
    for (let s = 0; s < chosen.length; s++) {
      const i = chosen[s];
      if (i < 0) continue;
      const [x, y] = view.toScreen(i);
      const cornerX = (((s % columns) + left) * side - view.state.x) * view.state.scale + view.state.width / 2;
      const cornerY = ((Math.floor(s / columns) + top) * side - view.state.y) * view.state.scale + view.state.height / 2;
      // Near its point, and within its square.
      const inside = (v, corner) => Math.min(Math.max(v - size / 2, corner + 2), corner + square - size - 2);
      context.globalAlpha = shown.shades[i] === Shade.DIM ? 0.25 : 1;
      drawThumbnail(i, inside(x, cornerX), inside(y, cornerY), size);
    }
    context.globalAlpha = 1;
  }

  function ring(i, radius, color, width) {
    const [x, y] = view.toScreen(i);
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.strokeStyle = color;
    context.lineWidth = width;
    context.stroke();
  }

  /** Draws lines from the selected image to its nearest, and a ring around it. */
  function drawSelection() {
    const ink = colors.variable("--ink");
    if (shown.selected >= 0) {
      const [x, y] = view.toScreen(shown.selected);
      context.globalAlpha = 0.45;
      context.strokeStyle = ink;
      context.lineWidth = 1;
      context.beginPath();
      for (const { row } of data.nearest(shown.selected)) {
        context.moveTo(x, y);
        context.lineTo(...view.toScreen(row));
      }
      context.stroke();
      context.globalAlpha = 1;
      if (sheets.areThere && view.state.scale >= thumbnailScale) {
        drawThumbnail(shown.selected, x - 36, y - 36, 72);
        context.strokeStyle = ink;
        context.lineWidth = 3;
        context.strokeRect(x - 40, y - 40, 80, 80);
      } else {
        ring(shown.selected, 9, colors.variable("--paper"), 5);
        ring(shown.selected, 9, ink, 2.5);
      }
    }
    if (shown.hovered >= 0) ring(shown.hovered, 7, ink, 1.5);
  }

  function drawLasso() {
    if (!shown.lasso || shown.lasso.length < 2) return;
    context.beginPath();
    shown.lasso.forEach(([x, y], n) => (n ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.closePath();
    context.fillStyle = context.strokeStyle = colors.variable("--c0");
    context.globalAlpha = 0.15;
    context.fill();
    context.globalAlpha = 1;
    context.lineWidth = 1.5;
    context.setLineDash([5, 4]);
    context.stroke();
    context.setLineDash([]);
  }

  /** The radius of a point: larger for fewer points, and as the map is magnified. */
  function radius() {
    const base = Math.min(4.5, Math.max(1.6, 160 / Math.sqrt(data.count)));
    return Math.min(6, base * view.zoom ** 0.3);
  }

  function frame() {
    scheduled = false;
    const start = performance.now();
    resize();
    buffer.fill(shown.paper);
    const isFiltered = shown.isFiltered;
    if (isFiltered) drawDisks(Shade.DIM, radius() * 0.8, 0.13);
    drawDisks(Shade.NORMAL, radius(), isFiltered ? 0.95 : 0.72);
    drawDisks(Shade.BRIGHT, radius() * 1.5 + 1, 1);
    context.putImageData(pixels, 0, 0);
    context.setTransform(ratio(), 0, 0, ratio(), 0, 0);
    drawThumbnails();
    drawSelection();
    drawLasso();
    const time = performance.now() - start;
    shown.isSlow = time > SLOW || (shown.isSlow && isMoving);
    frames.push(time);
    if (frames.length > 600) frames.shift();
  }

  function invalidate() {
    if (!scheduled) requestAnimationFrame(frame);
    scheduled = true;
  }

  return {
    canvas,
    shown,
    Shade,
    frames,
    boxes,
    thumbnailScale,
    invalidate,

    /** Redraws while the map moves, and sharply when it rests. */
    moving() {
      isMoving = true;
      clearTimeout(sharpen);
      sharpen = setTimeout(() => {
        isMoving = false;
        invalidate();
      }, 160);
      invalidate();
    },

    /** Takes the colors of a mode. */
    setPaint(paint) {
      shown.paint = paint;
      shown.paper = colors.toPixel(colors.variable("--paper"));
      invalidate();
    },

    /** Sets which images stand out: `shadeOf` returns the shade of an image, or null for no filter. */
    setShades(shadeOf) {
      shown.isFiltered = shadeOf !== null;
      for (let i = 0; i < data.count; i++) shown.shades[i] = shadeOf ? shadeOf(i) : Shade.NORMAL;
      invalidate();
    },

    /** Returns the image whose thumbnail is at a place, or whose point is near; -1 if there is none. */
    imageAt(x, y, within) {
      const isInside = (b) => x >= b.left && x <= b.right && y >= b.top && y <= b.bottom;
      for (let b = boxes.length - 1; b >= 0; b--) if (isInside(boxes[b])) return boxes[b].i;
      return view.imageAt(x, y, within);
    },
  };
})();
