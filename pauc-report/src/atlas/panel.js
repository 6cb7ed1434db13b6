// The panel beside the map: the selected image with its nearest, and lists of images.
"use strict";

const panel = (() => {
  const PART = 200;
  const tabs = Array.from(document.querySelectorAll("[role=tab]"));
  const live = document.getElementById("live");
  let onPick = () => {};

  /** Creates an element with classes, and text or children. */
  function make(tag, className, ...content) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    element.append(...content);
    return element;
  }

  function say(text) {
    live.textContent = text;
  }

  function show(name, isFocused = false) {
    for (const tab of tabs) {
      const isShown = tab.id === `tab-${name}`;
      tab.setAttribute("aria-selected", isShown);
      tab.tabIndex = isShown ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = !isShown;
      if (isShown && isFocused) tab.focus();
    }
  }

  function nameOf(tab) {
    return tab.id.slice("tab-".length);
  }

  for (const tab of tabs) {
    tab.addEventListener("click", () => show(nameOf(tab)));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const shown = tabs.filter((t) => !t.hidden);
      show(nameOf(shown[(shown.indexOf(tab) + step + shown.length) % shown.length]), true);
    });
  }

  /** An image of a list: its thumbnail, name and a note, as a button that selects it. */
  function item(i, note) {
    const text = make("span", "text", make("span", "name", data.nameOf(i)));
    if (note) text.append(make("span", "note", note));
    const button = make("button", "item", ...(sheets.areThere ? [sheets.element(i, 44)] : []), text);
    button.type = "button";
    button.addEventListener("click", () => onPick(i, true));
    return button;
  }

  /** Fills a list part by part, so that long ones appear at once. */
  function fill(list, entries, makeEntry) {
    list.replaceChildren();
    const more = make("button", "more");
    more.type = "button";
    let done = 0;
    const add = () => {
      list.append(...entries.slice(done, done + PART).map((entry, n) => makeEntry(entry, done + n)));
      done += PART;
      if (done < entries.length) {
        more.textContent = `Show ${Math.min(PART, entries.length - done)} more of ${entries.length}`;
        list.after(more);
      } else {
        more.remove();
      }
    };
    more.addEventListener("click", add);
    list.parentElement.querySelectorAll(".more").forEach((button) => button.remove());
    add();
  }

  function listItem(i, note) {
    return make("li", "", item(i, note));
  }

  /** What is known about an image, as pairs of a word and a value. */
  function facts(i) {
    const pairs = [];
    if (data.labels) pairs.push(["Class", data.className(data.labels[i])]);
    if (data.prototypes && data.prototypes.of[i] >= 0) {
      const prototype = data.prototypes.of[i];
      const concentration = data.prototypes.concentrations[prototype];
      pairs.push(["Prototype", `${prototype}, concentration ${concentration.toPrecision(3)}`]);
    }
    if (data.splits) pairs.push(["Split", data.splitNames[data.splits[i]]]);
    const share = Math.round(100 * data.moreTypicalThan(i));
    const cosine = data.typicality[i].toFixed(3);
    pairs.push(["How typical", `more than ${share} % of the images (mean cosine ${cosine})`]);
    if (data.votes && data.votes.labels[i] >= 0) {
      const part = Math.round((100 * data.votes.shares[i]) / 255);
      pairs.push(["Neighbors", `${part} % are ${data.className(data.votes.labels[i])}`]);
    }
    return pairs;
  }

  function select(i, paint) {
    const place = document.getElementById("selected");
    if (i < 0) {
      place.replaceChildren(document.getElementById("start").content.cloneNode(true));
      return;
    }
    const terms = facts(i).flatMap(([word, value]) => [make("dt", "", word), make("dd", "", value)]);
    const near = data.nearest(i);
    const nearest = near.map(({ row, cosine }) => {
      const picture = sheets.areThere ? sheets.element(row, 52) : make("span", "name", data.nameOf(row));
      const button = make("button", "near", picture, make("span", "note", cosine.toFixed(2)));
      button.type = "button";
      button.title = data.nameOf(row);
      button.setAttribute("aria-label", `${data.nameOf(row)}, cosine ${cosine.toFixed(2)}`);
      button.style.borderColor = paint.css[paint.of[row]];
      button.addEventListener("click", () => onPick(row, false));
      return make("li", "", button);
    });
    place.replaceChildren(
      ...(sheets.areThere ? [sheets.element(i, 168)] : []),
      make("h2", "", data.nameOf(i)),
      make("dl", "", ...terms),
      make("h3", "", `The ${near.length} nearest images`),
      make("ul", sheets.areThere ? "nearest" : "nearest words", ...nearest),
    );
    show("selected");
    const names = near.slice(0, 3).map(({ row }) => data.nameOf(row));
    const told = facts(i).map(([word, value]) => `${word}: ${value}`);
    say([data.nameOf(i), ...told, `Nearest: ${names.join(", ")}`].join(". "));
  }

  /** Shows images that were searched or enclosed. */
  function showFound(title, rows) {
    document.getElementById("found-title").textContent = title;
    document.getElementById("found-actions").hidden = rows.length === 0;
    document.getElementById("tab-found").hidden = false;
    fill(document.getElementById("found"), rows, (i) => listItem(i, noteOf(i)));
    show("found");
    say(title);
  }

  function hideFound() {
    document.getElementById("tab-found").hidden = true;
    if (!document.getElementById("panel-found").hidden) show("selected");
  }

  function noteOf(i) {
    const parts = [];
    if (data.labels) parts.push(data.className(data.labels[i]));
    if (data.splits) parts.push(data.splitNames[data.splits[i]]);
    return parts.join(", ");
  }

  function fillLists() {
    const { wrong, duplicates, outliers, duplicate_counts: counts } = data.lists;
    const labels = (i) => {
      const [own, other] = [data.className(data.labels[i]), data.className(data.votes.labels[i])];
      return `${own}; ${Math.round((100 * data.votes.shares[i]) / 255)} % of its neighbors are ${other}`;
    };
    if (wrong) fill(document.getElementById("wrong"), wrong, (i) => listItem(i, labels(i)));
    const group = (rows, n) => {
      const rest = counts[n] - rows.length;
      const items = rows.map((i) => listItem(i, noteOf(i)));
      if (rest > 0) items.push(make("li", "note rest", `and ${rest} more`));
      return make("li", "group", make("ul", "", ...items));
    };
    fill(document.getElementById("duplicates"), duplicates, group);
    const cosine = (i) => `mean cosine ${data.typicality[i].toFixed(3)} to its nearest`;
    fill(document.getElementById("outliers"), outliers, (i) => listItem(i, cosine(i)));
  }

  return {
    select,
    show,
    showFound,
    hideFound,
    fillLists,
    say,

    /** Calls `pick` with an image that was chosen, and whether the map should go there. */
    whenPicked(pick) {
      onPick = pick;
    },
  };
})();
