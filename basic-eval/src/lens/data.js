'use strict';

// Unpacks the page's data, which page_data.rs encodes and page.rs lays out.
const data = JSON.parse(document.getElementById('lens-data').textContent);

function buffer(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i += 1) bytes[i] = raw.charCodeAt(i);
  return bytes.buffer;
}

for (const model of data.models) {
  const unpack = ([ids, values]) => ({
    ids: model.width === 4 ? new Uint32Array(buffer(ids)) : new Uint16Array(buffer(ids)),
    values: new Int16Array(buffer(values)),
  });
  for (const image of model.images) {
    image.weight = new Float32Array(buffer(image.weight));
    image.queries = image.queries && new Float32Array(buffer(image.queries));
    image.norm = new Float32Array(buffer(image.norm));
    image.angle = new Uint16Array(buffer(image.angle));
    image.attention = new Float32Array(buffer(image.attention));
    image.meaningful = new Uint8Array(buffer(image.meaningful));
    for (const kind of ['nearest', 'scores', 'logits']) image[kind] = image[kind] && unpack(image[kind]);
  }
}

// The index of patch `patch` at the model's `at`-th layer in a list with one number per patch and layer.
const index = (model, at, patch) => at * model.places.length + patch;

// The tokens of a patch with their values, nearest first.
function tokens(model, image, kind, at, patch) {
  const list = image[kind] || image.nearest;
  const start = index(model, at, patch) * model.top;
  return Array.from({ length: model.top }, (_, n) => ({
    text: model.tokens[list.ids[start + n]],
    value: list.values[start + n] / data.scale,
  }));
}

// The index of the layer that a model shows when the slider is at `layer`: its last layer that is not beyond `layer`.
function layerAt(model, layer) {
  let at = 0;
  while (at + 1 < model.layers.length && model.layers[at + 1] <= layer) at += 1;
  return at;
}

// Text with control characters written as escapes, and a dot for each leading or trailing space.
function visible(text) {
  const picture = (c) => {
    const code = c.charCodeAt(0);
    if (c === '\n') return '↵';
    if (c === '\t') return '⇥';
    return code < 256 ? '\\x' + code.toString(16).padStart(2, '0') : '\\u' + code.toString(16).padStart(4, '0');
  };
  return text
    .replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, picture)
    .replace(/^ +| +$/g, (spaces) => '·'.repeat(spaces.length));
}
