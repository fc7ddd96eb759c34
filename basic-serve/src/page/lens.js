// The token lens over the picture: for each model the words that its patches are nearest to, layer by layer.
const lens = { views: [], layer: 0, patch: 0, looking: null };
const WORDS = 5;

// Five colours of the Viridis map, from dark (low) to light (high); it is readable with colour blindness.
const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
function shade(share) {
  const at = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
  const low = Math.min(Math.floor(at), STOPS.length - 2);
  return STOPS[low].map((value, channel) => Math.round(value + (STOPS[low + 1][channel] - value) * (at - low)));
}

// A word as it is shown: with a dot for an outer space, and symbols for what has no shape.
function shown(text) {
  const dotted = text.replace(/^ +| +$/g, (spaces) => '·'.repeat(spaces.length));
  return dotted.replace(/\n/g, '⏎').replace(/\t/g, '⇥').replace(/[\u0000-\u001f\u007f]/g, '␣') || '∅';
}

function forgetLens() {
  lens.looking?.abort();
  lens.looking = null;
  lens.views = [];
  element('lens').hidden = true;
  element('views').replaceChildren();
  element('look-status').textContent = '';
}

// Asks every model what it sees in the picture.
async function lookAt(picture, models) {
  forgetLens();
  const looking = new AbortController();
  lens.looking = looking;
  element('look-status').textContent = 'Looking at the picture …';
  const seen = await Promise.allSettled(models.map((model) =>
    postJson('v1/lens', { model: model.id, image: picture.url, top: WORDS }, looking.signal)));
  if (lens.looking !== looking) return;
  const failed = seen.filter((one) => one.status === 'rejected').map((one) => one.reason.message);
  element('look-status').textContent = [...new Set(failed)].join(' ');
  lens.views = seen.filter((one) => one.status === 'fulfilled').map((one, number) => lensView(one.value, number));
  element('views').replaceChildren(...lens.views.map((view) => view.node));
  element('lens').hidden = lens.views.length === 0;
  element('layer').max = Math.max(0, ...lens.views.map((view) => view.seen.layers.length - 1));
  lens.patch = 0;
  showLayer(Math.min(lens.layer, element('layer').max));
}

// One model's picture under its patches.
function lensView(seen, number) {
  const { side, places } = seen.grid;
  const picture = make('img', { alt: 'The picture as the model sees it', src: seen.seen });
  picture.addEventListener('load', () => picture.classList.toggle('small', picture.naturalWidth < 128));
  const patches = make('div', { className: 'patches' });
  patches.style.setProperty('--side', side);
  patches.setAttribute('role', 'grid');
  patches.setAttribute('aria-label', `Patches as ${seen.model} sees them`);
  const cells = places.map((place, patch) => {
    if (!Array.isArray(place)) return null;
    const cell = make('div', { className: 'patch', tabIndex: -1 }, make('span'));
    cell.setAttribute('role', 'gridcell');
    cell.style.gridArea = `${place[0] + 1} / ${place[1] + 1}`;
    for (const event of ['pointerenter', 'focus', 'click']) cell.addEventListener(event, () => showPatch(patch));
    return cell;
  });
  for (let row = 0; row < side; row += 1) {
    const line = make('div', {}, ...cells.filter((cell, patch) => cell && places[patch][0] === row));
    line.setAttribute('role', 'row');
    line.style.display = 'contents';
    patches.append(line);
  }
  const near = make('div', { className: 'near', id: `near-${number}` });
  const frame = make('div', { className: side > 14 ? 'picture many' : 'picture' }, picture, patches);
  // A resampler's queries read the whole picture: there is no square of it that one of them stands for.
  const why = 'The visual embeddings of this model are queries that read the whole picture, so that none has a place in it.';
  const unplaced = places.some(Array.isArray) ? [] : [make('p', { textContent: `${why} basic analyze lists them.` })];
  const node = make('div', { className: 'view' }, make('h2', { textContent: seen.model }), ...unplaced, frame, near);
  const view = { seen, cells, near, node };
  patches.addEventListener('keydown', (event) => moved(event, view));
  return view;
}

const layerOf = (view) => view.seen.layers[Math.min(lens.layer, view.seen.layers.length - 1)];
const wordOf = (view, id) => shown(view.seen.tokens[id]?.text ?? '');

function layerName(layer, view) {
  const last = view ? view.seen.decoder_layers : layer;
  return layer === 0 ? '0: projector' : `${layer} of ${last}`;
}

function showLayer(layer) {
  lens.layer = Number(layer);
  element('layer').value = lens.layer;
  const name = layerName(lens.layer, lens.views[0]);
  element('layer-name').textContent = name;
  element('layer').setAttribute('aria-valuetext', name);
  for (const view of lens.views) {
    const nearest = layerOf(view).nearest;
    const best = nearest.map((words) => words[0]?.[1] ?? 0);
    const [low, high] = [Math.min(...best), Math.max(...best)];
    view.cells.forEach((cell, patch) => {
      if (!cell) return;
      const word = nearest[patch][0] ? wordOf(view, nearest[patch][0][0]) : '';
      const share = high > low ? (best[patch] - low) / (high - low) : 0.5;
      cell.firstChild.textContent = word;
      cell.setAttribute('aria-label', `row ${view.seen.grid.places[patch][0] + 1}, column ${view.seen.grid.places[patch][1] + 1}: ${word}`);
      cell.style.background = `rgb(${shade(share).join(' ')} / 0.5)`;
    });
  }
  showPatch(lens.patch);
}

function showPatch(patch) {
  lens.patch = patch;
  for (const view of lens.views) {
    view.cells.forEach((cell, index) => {
      if (!cell) return;
      cell.setAttribute('aria-selected', index === patch);
      cell.tabIndex = index === patch ? 0 : -1;
    });
    const words = layerOf(view).nearest[patch] ?? [];
    const rows = words.map(([id, cosine]) =>
      make('tr', {}, make('td', { textContent: wordOf(view, id) }), make('td', { className: 'number', textContent: cosine.toFixed(3) })));
    const place = view.seen.grid.places[patch];
    const where = Array.isArray(place) ? `Row ${place[0] + 1}, column ${place[1] + 1}` : String(place);
    const table = make('table', {}, make('caption', { textContent: `${where}: nearest words, and their cosine` }), make('tbody', {}, ...rows));
    const path = make('ol', { className: 'path' }, ...view.seen.layers.map((layer, index) => {
      const first = layer.nearest[patch]?.[0];
      const item = make('li', {}, make('small', { textContent: `${layer.layer} ` }), first ? wordOf(view, first[0]) : '');
      item.setAttribute('aria-current', index === Math.min(lens.layer, view.seen.layers.length - 1));
      return item;
    }));
    path.setAttribute('aria-label', 'The nearest word of this patch, layer by layer');
    view.near.replaceChildren(table, path);
  }
}

function moved(event, view) {
  const { side, places } = view.seen.grid;
  const place = places[lens.patch];
  if (!Array.isArray(place) || event.altKey || event.ctrlKey || event.metaKey) return;
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -side], End: [0, side] };
  if (event.key === 'PageUp' || event.key === 'PageDown') {
    const layer = lens.layer + (event.key === 'PageUp' ? 1 : -1);
    showLayer(Math.min(Math.max(layer, 0), Number(element('layer').max)));
  } else if (steps[event.key]) {
    const [row, column] = place.map((at, axis) => Math.min(Math.max(at + steps[event.key][axis], 0), side - 1));
    const patch = places.findIndex((other) => Array.isArray(other) && other[0] === row && other[1] === column);
    if (patch >= 0) view.cells[patch].focus();
  } else {
    return;
  }
  event.preventDefault();
}

element('layer').addEventListener('input', (event) => showLayer(event.target.value));
