// What the colors of the points mean: classes, prototypes, or a number from low to high.
"use strict";

const colors = (() => {
  const PALETTE = 10;
  const NONE = "--muted";

  /** Returns the value of a color of the style sheet. */
  function variable(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  /** Turns a CSS color into a pixel of a canvas. */
  const toPixel = (() => {
    const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    return (css) => {
      context.fillStyle = css;
      context.fillRect(0, 0, 1, 1);
      return new Uint32Array(context.getImageData(0, 0, 1, 1).data.buffer)[0];
    };
  })();

  function isDark() {
    return matchMedia("(prefers-color-scheme: dark)").matches;
  }

  /** The color of a group: one of ten, or, if there are more groups, a hue of its own. */
  function groupColor(group, groups) {
    if (group < 0) return variable(NONE);
    if (groups <= PALETTE) return variable(`--c${group}`);
    const hue = (group * 137.508) % 360;
    const lightness = (isDark() ? 62 : 38) + (group % 3) * 8;
    return `hsl(${hue.toFixed(1)} ${group % 2 ? 62 : 78}% ${lightness}%)`;
  }

  /** Colors from low to high in 64 steps, between the five colors of a ramp. */
  function ramp(name) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [64, 1];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const gradient = context.createLinearGradient(0, 0, 64, 0);
    for (let i = 0; i < 5; i++) gradient.addColorStop(i / 4, variable(`--${name}${i}`));
    context.fillStyle = gradient;
    context.fillRect(0, 0, 64, 1);
    const pixels = context.getImageData(0, 0, 64, 1).data;
    return Array.from({ length: 64 }, (_, i) => `rgb(${pixels.slice(4 * i, 4 * i + 3).join(" ")})`);
  }

  /** A mode of groups: `of` returns the group of an image, `name` the name of a group. */
  function grouped(id, title, groups, of, name) {
    const counts = new Uint32Array(groups);
    for (let i = 0; i < data.count; i++) if (of(i) >= 0) counts[of(i)]++;
    const color = (group) => groupColor(group, groups);
    return { id, title, groups, counts, groupOf: of, groupName: name, groupColor: color };
  }

  /** A mode of numbers. `text` formats one for the legend. */
  function measured(id, title, value, text, rampName) {
    let [low, high] = [Infinity, -Infinity];
    for (let i = 0; i < data.count; i++) {
      if (Number.isNaN(value(i))) continue;
      low = Math.min(low, value(i));
      high = Math.max(high, value(i));
    }
    const step = (i) => Math.min(63, Math.floor(((value(i) - low) / (high - low || 1)) * 64));
    return { id, title, value, step, ends: [text(low), text(high)], rampName };
  }

  function modes() {
    const all = [];
    if (data.labels) {
      const groups = Math.max(data.classes.length, data.labels.reduce((a, b) => Math.max(a, b), -1) + 1);
      all.push(grouped("class", "Class", groups, (i) => data.labels[i], data.className));
    }
    if (data.prototypes) {
      const { of, concentrations } = data.prototypes;
      all.push(grouped("prototype", "Prototype", concentrations.length, (i) => of[i], (p) => `prototype ${p}`));
    }
    if (data.splits) {
      const names = data.splitNames;
      all.push(grouped("split", "Split", names.length, (i) => data.splits[i], (s) => names[s]));
    }
    const digits = (value) => value.toFixed(2);
    all.push(measured("typicality", "How typical", (i) => data.typicality[i], digits, "ramp"));
    if (data.prototypes) {
      const { of, concentrations } = data.prototypes;
      const phi = (i) => concentrations[of[i]] ?? NaN;
      all.push(measured("concentration", "Concentration of the prototype", phi, digits, "ramp"));
    }
    if (data.votes) {
      const share = (i) => data.votes.disagreement[i] / 255;
      const percent = (value) => `${Math.round(100 * value)} %`;
      all.push(measured("disagreement", "Neighbors with another label", share, percent, "hot"));
    }
    return all;
  }

  return {
    modes: modes(),
    variable,
    toPixel,

    /** Returns the colors of all images in a mode: a palette as CSS and as pixels, and an index per image. */
    paint(mode) {
      const of = new Uint16Array(data.count);
      if (mode.groups === undefined) {
        const css = [...ramp(mode.rampName), variable(NONE)];
        for (let i = 0; i < data.count; i++) of[i] = Number.isNaN(mode.value(i)) ? 64 : mode.step(i);
        return { of, css, pixels: Uint32Array.from(css, toPixel) };
      }
      const css = Array.from({ length: mode.groups + 1 }, (_, g) => mode.groupColor(g === mode.groups ? -1 : g));
      for (let i = 0; i < data.count; i++) {
        const group = mode.groupOf(i);
        of[i] = group < 0 ? mode.groups : group;
      }
      return { of, css, pixels: Uint32Array.from(css, toPixel) };
    },
  };
})();
