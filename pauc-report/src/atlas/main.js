// Connects the parts of the page.
"use strict";

(() => {
  const { shown, Shade } = draw;
  const colorBy = document.getElementById("color");
  const search = document.getElementById("search");
  const lasso = document.getElementById("lasso");
  let found = null;
  let mode = colors.modes[0];

  function repaint() {
    const paint = colors.paint(mode);
    draw.setPaint(paint);
    legend.show(mode, paint);
  }

  /** Lets the images that were found, or are of the chosen groups, stand out. */
  function filter() {
    const { chosen } = legend;
    if (!found && chosen.size === 0) return draw.setShades(null);
    const isFound = found && new Set(found);
    draw.setShades((i) => {
      const isShown = (!isFound || isFound.has(i)) && (chosen.size === 0 || chosen.has(mode.groupOf(i)));
      return isShown ? (isFound ? Shade.BRIGHT : Shade.NORMAL) : Shade.DIM;
    });
  }

  function select(i) {
    shown.selected = i;
    panel.select(i, shown.paint);
    draw.invalidate();
  }

  function goTo(i) {
    select(i);
    view.goTo(i, draw.thumbnailScale * 1.2, draw.moving);
  }

  function setFound(title, rows) {
    found = rows;
    filter();
    panel.showFound(title, rows);
  }

  function clearFound() {
    found = null;
    filter();
    panel.hideFound();
  }

  function countOf(rows) {
    return rows.length === 1 ? "1 image" : `${rows.length} images`;
  }

  /** Selects the nearest image in a direction from the selected one, within a right angle. */
  function step([dx, dy]) {
    if (shown.selected < 0) return select(view.imageAt(view.state.width / 2, view.state.height / 2, Infinity));
    const [x, y] = [data.xs[shown.selected], data.ys[shown.selected]];
    let [best, least] = [-1, Infinity];
    for (let i = 0; i < data.count; i++) {
      const along = (data.xs[i] - x) * dx + (data.ys[i] - y) * dy;
      const across = Math.abs((data.xs[i] - x) * dy + (data.ys[i] - y) * dx);
      const distance = along * along + across * across;
      if (i !== shown.selected && along > 0 && along >= across && distance < least) [best, least] = [i, distance];
    }
    if (best >= 0) {
      select(best);
      view.goTo(best, 0, draw.moving);
    }
  }

  function searchFor(text) {
    const wanted = text.trim().toLowerCase();
    if (!wanted) return clearFound();
    const rows = [];
    data.lowerNames().forEach((name, i) => name.includes(wanted) && rows.push(i));
    setFound(rows.length ? `${countOf(rows)} with “${text.trim()}”` : `No name contains “${text.trim()}”`, rows);
  }

  function names() {
    return found.map((i) => `${data.nameOf(i)}\n`).join("");
  }

  async function copy() {
    try {
      await navigator.clipboard.writeText(names());
    } catch {
      // Pages from a disk may not use the clipboard of the system directly.
      const area = document.createElement("textarea");
      area.value = names();
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    panel.say(`${countOf(found)} copied`);
    document.getElementById("copy").textContent = "Copied";
    setTimeout(() => (document.getElementById("copy").textContent = "Copy names"), 1500);
  }

  function save() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([names()], { type: "text/plain" }));
    link.download = "images.txt";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  function connect() {
    for (const { id, title } of colors.modes) colorBy.append(new Option(title, id));
    colorBy.addEventListener("change", () => {
      mode = colors.modes.find((m) => m.id === colorBy.value);
      legend.chosen.clear();
      repaint();
      filter();
      if (shown.selected >= 0) panel.select(shown.selected, shown.paint);
    });
    legend.whenChanged(filter);
    let typing = 0;
    search.addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => searchFor(search.value), 120);
    });
    search.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      clearTimeout(typing);
      searchFor(search.value);
      if (found?.length) goTo(found[0]);
    });
    lasso.addEventListener("click", () => input.setLasso(!input.isLasso));
    document.getElementById("fit").addEventListener("click", () => view.fit(draw.moving));
    for (const [id, factor] of [["closer", 1.6], ["farther", 1 / 1.6]]) {
      document.getElementById(id).addEventListener("click", () => {
        view.zoomAt(view.state.width / 2, view.state.height / 2, factor);
        draw.moving();
      });
    }
    document.getElementById("copy").addEventListener("click", copy);
    document.getElementById("save").addEventListener("click", save);
    panel.whenPicked((i, isFar) => (isFar ? goTo(i) : select(i)));
    input.listen({
      select,
      step,
      lasso: (rows) => setFound(`${countOf(rows)} inside the lasso`, rows),
      lassoMode: (value) => lasso.setAttribute("aria-pressed", value),
      escape: () => {
        search.value = "";
        clearFound();
        select(-1);
      },
    });
    sheets.whenReady(draw.invalidate);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
    new ResizeObserver(draw.invalidate).observe(draw.canvas);
  }

  connect();
  // The map of a phone has no space for it.
  document.getElementById("legend").open = innerWidth > 760;
  repaint();
  const legendPlace = document.getElementById("legend");
  const covered = legendPlace.open ? legendPlace.offsetWidth : 0;
  view.resize(draw.canvas.clientWidth, draw.canvas.clientHeight, covered);
  view.fit(draw.invalidate, true);
  draw.setShades(null);
  select(-1);
  // The lists need not be there when the map is first seen.
  setTimeout(panel.fillLists, 0);
  // For tests, and for a console.
  window.atlas = { data, view, draw, select, goTo };
})();
