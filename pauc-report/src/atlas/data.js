// The images of the page: arrays by number, from the payload that the program has written.
"use strict";

/** Decodes base64 to bytes. */
function bytesOf(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** Decodes base64 to numbers of a typed array; null stays null. */
function numbersOf(text, Numbers) {
  return text === null ? null : new Numbers(bytesOf(text).buffer);
}

/** Decodes unsigned numbers of `width` bytes each. */
function wideNumbersOf(text, width) {
  const bytes = bytesOf(text);
  const numbers = new Uint32Array(bytes.length / width);
  for (let i = 0; i < numbers.length; i++) {
    for (let b = width - 1; b >= 0; b--) numbers[i] = numbers[i] * 256 + bytes[i * width + b];
  }
  return numbers;
}

/** A value that is computed when it is first read. */
function lazy(compute) {
  let value;
  return () => (value === undefined ? (value = compute()) : value);
}

const data = (() => {
  const payload = JSON.parse(document.getElementById("payload").textContent);
  const count = payload.count;
  const places = numbersOf(payload.points, Uint16Array);
  const xs = new Float64Array(count);
  const ys = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    xs[i] = places[2 * i] / 65535;
    ys[i] = places[2 * i + 1] / 65535;
  }
  const ids = numbersOf(payload.ids, Uint32Array);
  const splits = numbersOf(payload.splits, Uint8Array);
  const typicality = numbersOf(payload.typicality, Float32Array);
  const nearRows = lazy(() => wideNumbersOf(payload.near.rows, payload.near.width));
  const nearCosines = lazy(() => bytesOf(payload.near.distances));
  const sorted = lazy(() => Float32Array.from(typicality).sort());
  const lowerNames = lazy(() => Array.from({ length: count }, (_, i) => nameOf(i).toLowerCase()));

  /** The name of an image: its path, or its number in its split. */
  function nameOf(i) {
    if (payload.names !== null) return payload.names[i];
    return splits ? `${payload.split_names[splits[i]]} image ${ids[i]}` : `image ${ids[i]}`;
  }

  return {
    count,
    xs,
    ys,
    ids,
    nameOf,
    lowerNames,
    typicality,
    near: payload.near,
    classes: payload.classes,
    labels: numbersOf(payload.labels, Int32Array),
    votes: payload.votes && {
      labels: numbersOf(payload.votes.labels, Int32Array),
      shares: bytesOf(payload.votes.shares),
      disagreement: bytesOf(payload.votes.disagreement),
    },
    prototypes: payload.prototypes && {
      of: numbersOf(payload.prototypes.of, Int32Array),
      concentrations: payload.prototypes.concentrations,
    },
    splits,
    splitNames: payload.split_names,
    lists: payload.lists,
    duplicateCosine: payload.duplicate_cosine,
    thumbnails: payload.thumbnails,
    sizes: payload.thumbnails && bytesOf(payload.thumbnails.sizes),

    /** The nearest images of an image, nearest first, with their cosines. */
    nearest(i) {
      const k = payload.near.k;
      const found = [];
      for (let n = i * k; n < (i + 1) * k; n++) {
        // The distance of unit vectors, in steps of 2/255.
        const distance = (nearCosines()[n] * 2) / 255;
        if (nearRows()[n] !== i) found.push({ row: nearRows()[n], cosine: 1 - (distance * distance) / 2 });
      }
      return found;
    },

    /** The share of images that are less typical than an image. */
    moreTypicalThan(i) {
      const all = sorted();
      let [low, high] = [0, count];
      while (low < high) {
        const middle = (low + high) >> 1;
        if (all[middle] < typicality[i]) low = middle + 1;
        else high = middle;
      }
      return count > 1 ? low / (count - 1) : 0;
    },

    /** The name of a class. */
    className(label) {
      return label < 0 ? "no label" : (payload.classes[label] ?? `class ${label}`);
    },
  };
})();
