// The legend: the groups of a mode, which stand out when they are chosen, or the ends of a scale.
"use strict";

const legend = (() => {
  const MOST_GROUPS = 40;
  const element = document.getElementById("legend");
  const chosen = new Set();
  let onChange = () => {};

  function row(mode, group) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "key";
    button.setAttribute("aria-pressed", chosen.has(group));
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = mode.groupColor(group);
    const name = document.createElement("span");
    name.className = "name";
    name.textContent = mode.groupName(group);
    const count = document.createElement("span");
    count.className = "count";
    count.textContent = mode.counts[group];
    button.append(swatch, name, count);
    button.addEventListener("click", () => {
      if (!chosen.delete(group)) chosen.add(group);
      button.setAttribute("aria-pressed", chosen.has(group));
      onChange();
    });
    return button;
  }

  function groups(mode) {
    const order = Array.from(mode.counts.keys()).filter((g) => mode.counts[g] > 0);
    const most = order.length > MOST_GROUPS;
    if (most) order.sort((a, b) => mode.counts[b] - mode.counts[a]);
    const rows = order.slice(0, MOST_GROUPS).map((group) => row(mode, group));
    if (most) {
      const rest = document.createElement("p");
      rest.className = "note";
      rest.textContent = `The largest ${MOST_GROUPS} of ${order.length}.`;
      rows.push(rest);
    }
    return rows;
  }

  function scale(mode, css) {
    const bar = document.createElement("div");
    bar.className = "scale";
    bar.style.background = `linear-gradient(to right, ${css.slice(0, 64).join(", ")})`;
    const ends = document.createElement("div");
    ends.className = "ends";
    for (const end of mode.ends) {
      const text = document.createElement("span");
      text.textContent = end;
      ends.append(text);
    }
    return [bar, ends];
  }

  return {
    chosen,

    show(mode, paint) {
      const title = document.createElement("summary");
      title.textContent = mode.title;
      const rows = mode.groups === undefined ? scale(mode, paint.css) : groups(mode);
      element.replaceChildren(title, ...rows);
    },

    whenChanged(change) {
      onChange = change;
    },
  };
})();
