const kinds = { nearest: 'cosine with the embedding table', scores: 'inner product with it (softmax)', logits: 'logits (final norm and head)' };
const colors = {
  similarity: 'similarity of the first token',
  meaningful: 'whether the nearest token is meaningful',
  attention: 'attention of the text in this layer',
  weight: 'attention over the supervising layers (a)',
  angle: 'angle to V̂, the supervisory embedding',
  norm: 'length of the embedding',
};
const state = { layer: 0, image: 0, patch: 0, color: 'similarity', kind: 'nearest', overlay: 0.6 };
const element = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function draw(tag, attributes, ...children) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Five colours of the Viridis map, from dark (low) to light (high); it is readable with colour blindness.
const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
function shade(share) {
  const at = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
  const low = Math.min(Math.floor(at), STOPS.length - 2);
  return STOPS[low].map((value, channel) => Math.round(value + (STOPS[low + 1][channel] - value) * (at - low)));
}
const MARKS = [[110, 113, 120], [94, 201, 98], null];
const MARK_NAMES = ['not meaningful', 'meaningful', 'not counted'];

const percent = (share) => (share === 0 ? '0' : (100 * share).toFixed(share < 0.1 ? 2 : 1)) + '%';
const short = (value) => (value === 0 ? '0' : Math.abs(value) < 0.001 ? value.toExponential(1) : String(Number(value.toPrecision(3))));
const written = {
  similarity: (value) => (state.kind === 'nearest' ? value.toFixed(3) : percent(value)),
  attention: short, weight: short, angle: (value) => value.toFixed(1) + '°', norm: short,
};

// The number that a patch's colour shows; null if there is none.
function value(model, image, at, patch, color) {
  const i = index(model, at, patch);
  switch (color) {
    case 'similarity': return (image[state.kind] || image.nearest).values[i * model.top] / data.scale;
    case 'meaningful': return image.meaningful[i];
    case 'attention': return model.layers[at] === 0 ? null : image.attention[i];
    case 'weight': return image.weight[patch];
    case 'angle': return image.angle[i] / 100;
    default: return image.norm[i];
  }
}

// The range of a colour scale over both checkpoints: of this layer for quantities that grow with depth, else of all layers.
function range(color) {
  const own = color === 'attention' || color === 'norm';
  let [low, high] = [Infinity, -Infinity];
  for (const { model } of views) {
    const image = model.images[state.image];
    const now = layerAt(model, state.layer);
    for (let at = own ? now : 0; at < (own ? now + 1 : model.layers.length); at += 1) {
      for (let patch = 0; patch < model.places.length; patch += 1) {
        const number = value(model, image, at, patch, color);
        if (number !== null) [low, high] = [Math.min(low, number), Math.max(high, number)];
      }
    }
  }
  if (high === -Infinity) return null;
  return { low, high, own };
}

function layerName(layer) {
  const [{ k, layers: all }] = data.models;
  return layer === 0 ? '0: projector’s output (v)' : `${layer} of ${all[all.length - 1]}${layer <= k ? ' (supervising)' : ''}`;
}

const placeName = (place) => (Array.isArray(place) ? `row ${place[0] + 1}, column ${place[1] + 1}` : place);

// One checkpoint: its image under the patches, its numbers, and the chosen patch.
function view(model, number) {
  const heading = make('h2', { id: `name-${number}`, textContent: model.name });
  const summary = make('p', { className: 'summary' });
  const picture = make('img', { alt: '' });
  // Small images are shown with sharp pixels, large ones are smoothed as browsers do by default.
  picture.addEventListener('load', () => { picture.style.imageRendering = picture.naturalWidth < 128 ? 'pixelated' : 'auto'; });
  const grid = make('div', { className: 'grid' });
  grid.setAttribute('role', 'grid');
  grid.style.setProperty('--side', model.side);
  // Where a query of a resampler looks, one point for each patch.
  const heat = make('canvas', { className: 'heat', width: model.side, height: model.side, hidden: true });
  heat.setAttribute('aria-hidden', 'true');
  const others = make('div', { className: 'others', hidden: true });
  const cells = model.places.map((place, patch) => {
    const cell = make('div', { className: 'cell', tabIndex: -1 }, make('span'));
    cell.setAttribute('role', Array.isArray(place) ? 'gridcell' : 'button');
    cell.dataset.patch = patch;
    if (Array.isArray(place)) cell.style.gridArea = `${place[0] + 1} / ${place[1] + 1}`;
    else others.append(cell);
    return cell;
  });
  for (let row = 0; row < model.side; row += 1) {
    const line = make('div', { className: 'line' });
    line.setAttribute('role', 'row');
    line.append(...cells.filter((_, patch) => Array.isArray(model.places[patch]) && model.places[patch][0] === row));
    if (line.childElementCount) grid.append(line);
  }
  if (others.childElementCount) {
    others.hidden = false;
    others.prepend(make('span', { textContent: 'Without a place in the image:' }));
  }
  const panel = make('div', { className: 'panel' });
  panel.setAttribute('aria-live', 'polite');
  const chart = draw('svg', { viewBox: '0 0 320 92', class: 'chart', role: 'img' });
  const board = make('div', { className: 'board' }, picture, heat, grid);
  const said = Object.entries(model.answers || {}).map(([name, text]) => make('div', {}, make('dt', { textContent: name }), make('dd', { textContent: text })));
  const answers = make('dl', { className: 'facts answered', hidden: !said.length }, ...said);
  const section = make('section', { className: 'view' }, heading, summary, answers, make('div', { className: 'side' }, make('div', {}, board, others), make('div', {}, panel, chart)));
  section.setAttribute('aria-labelledby', heading.id);
  element('views').append(section);
  return { model, section, summary, picture, heat, grid, board, cells, panel, chart };
}

function paint({ model, summary, picture, grid, cells }, scale) {
  const image = model.images[state.image];
  const at = layerAt(model, state.layer);
  picture.src = data.pictures[image.picture];
  picture.alt = `What the model sees of ${image.name}`;
  grid.setAttribute('aria-label', `Patches of ${image.name}`);
  const size = cells[0].getBoundingClientRect().width;
  let [hits, counted] = [0, 0];
  cells.forEach((cell, patch) => {
    const number = value(model, image, at, patch, state.color);
    const [first] = tokens(model, image, state.kind, at, patch);
    const judged = image.meaningful[index(model, at, patch)];
    if (judged < 2) [hits, counted] = [hits + judged, counted + 1];
    let rgb = null;
    if (state.color === 'meaningful') rgb = MARKS[number];
    else if (number !== null && scale) rgb = shade(scale.high > scale.low ? (number - scale.low) / (scale.high - scale.low) : 0);
    cell.style.backgroundColor = rgb ? `rgb(${rgb.join(' ')} / ${state.overlay})` : 'transparent';
    const light = rgb ? (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]) * state.overlay + 128 * (1 - state.overlay) > 150 : false;
    cell.classList.toggle('dark', !light);
    cell.classList.toggle('hit', state.color === 'meaningful' && judged === 1);
    cell.classList.toggle('chosen', patch === state.patch);
    cell.tabIndex = patch === state.patch ? 0 : -1;
    const text = visible(first.text.trim() || first.text);
    const placed = Array.isArray(model.places[patch]);
    const label = placed ? text : `${model.places[patch]}: ${text}`;
    cell.firstChild.textContent = size >= 26 || !placed ? label : '';
    cell.firstChild.style.fontSize = placed ? `${Math.max(7, Math.min(13, (size - 3) / (0.6 * Math.max(text.length, 3))))}px` : '';
    const measure = number === null || state.color === 'meaningful' ? '' : `, ${colors[state.color]} ${written[state.color](number)}`;
    cell.setAttribute('aria-label', `${placeName(model.places[patch])}: ${text}, ${MARK_NAMES[judged]}${measure}`);
  });
  const ends = image.end_share[at];
  const clamp = model.layers[at] === state.layer ? '' : `layer ${model.layers[at]}: `;
  summary.textContent = `${clamp}${counted ? `${hits} of ${counted} meaningful (${percent(hits / counted)})` : 'nothing counts'}`
    + (ends === null ? '' : `, ${percent(ends)} nearest to the end token`);
}

// Paints where the chosen query looks, from nowhere to the patch that it looks at most; returns what to say about it.
function look({ model, heat }, image, patch) {
  heat.hidden = !image.queries;
  if (heat.hidden) return [];
  const size = model.side * model.side;
  const own = image.queries.subarray(patch * size, (patch + 1) * size);
  const most = own.reduce((high, share, at) => (share > own[high] ? at : high), 0);
  const pixels = new ImageData(model.side, model.side);
  own.forEach((share, at) => pixels.data.set([...shade(own[most] > 0 ? share / own[most] : 0), Math.round(255 * state.overlay)], 4 * at));
  heat.getContext('2d', { willReadFrequently: true }).putImageData(pixels, 0, 0);
  const place = placeName([Math.floor(most / model.side), most % model.side]);
  return [make('p', { className: 'looks', textContent: `The colours show where it looks: most at ${place} (${percent(own[most])} of its attention).` })];
}

function detail(one) {
  const { model, panel } = one;
  const image = model.images[state.image];
  const at = layerAt(model, state.layer);
  const patch = Math.min(state.patch, model.places.length - 1);
  const list = tokens(model, image, state.kind, at, patch);
  const widest = Math.max(...list.map((token) => token.value), 1e-9);
  const judged = image.meaningful[index(model, at, patch)];
  const rows = list.map((token) => {
    const bar = make('span', { className: 'fill' });
    bar.style.width = `${Math.max(0, 100 * token.value / widest)}%`;
    return make('li', {}, make('bdi', { textContent: visible(token.text) }), make('span', { className: 'bar-box' }, bar), make('span', { className: 'number', textContent: written.similarity(token.value) }));
  });
  const facts = ['weight', 'attention', 'angle', 'norm'].map((color) => {
    const number = value(model, image, at, patch, color);
    const name = { weight: 'a', attention: 'attention here', angle: 'angle to V̂', norm: 'length' }[color];
    return make('div', {}, make('dt', { textContent: name }), make('dd', { textContent: number === null ? '–' : written[color](number) }));
  });
  const place = placeName(model.places[patch]);
  panel.replaceChildren(
    make('h3', { textContent: place[0].toUpperCase() + place.slice(1) }, make('small', { textContent: ' ' + MARK_NAMES[judged] })),
    ...look(one, image, patch),
    make('ol', { className: 'tokens' }, ...rows),
    make('dl', { className: 'numbers' }, ...facts),
  );
}

// The shares of meaningful embeddings and of end tokens over the layers.
function plot({ model, chart }) {
  const image = model.images[state.image];
  const x = (at) => 30 + 284 * (model.layers.length > 1 ? at / (model.layers.length - 1) : 0);
  const y = (share) => 66 - 56 * share;
  const shares = model.layers.map((_, at) => {
    const judged = Array.from(image.meaningful.subarray(index(model, at, 0), index(model, at + 1, 0))).filter((one) => one < 2);
    return judged.length ? judged.filter((one) => one === 1).length / judged.length : null;
  });
  const line = (values, kind) => draw('path', { class: kind, d: values.map((share, at) => (share === null ? '' : `${at && values[at - 1] !== null ? 'L' : 'M'}${x(at).toFixed(1)} ${y(share).toFixed(1)}`)).join('') });
  const label = (text, place, kind) => draw('text', { ...place, class: kind }, text);
  const at = layerAt(model, state.layer);
  chart.setAttribute('aria-label', `By layer, meaningful: ${shares.map((s) => (s === null ? 'none' : percent(s))).join(', ')}; end token: ${image.end_share.map((s) => (s === null ? 'none' : percent(s))).join(', ')}`);
  chart.replaceChildren(
    ...[0, 0.5, 1].flatMap((share) => [draw('line', { class: share ? 'grid-line' : 'axis', x1: 30, x2: 314, y1: y(share), y2: y(share) }), label(`${100 * share}%`, { x: 26, y: y(share) + 3.5 }, 'y')]),
    draw('line', { class: 'now', x1: x(at), x2: x(at), y1: 6, y2: 66 }),
    line(shares, 'share'), line(image.end_share, 'ends'),
    label('0', { x: x(0), y: 80 }, 'x'), label(`layer ${model.layers[model.layers.length - 1]}`, { x: x(model.layers.length - 1), y: 80 }, 'end'),
    draw('line', { class: 'share-key', x1: 84, x2: 100, y1: 77, y2: 77 }), label('meaningful', { x: 104, y: 80 }, ''),
    draw('line', { class: 'ends-key', x1: 174, x2: 190, y1: 77, y2: 77 }), label('end token', { x: 194, y: 80 }, ''),
  );
}

function legend(scale) {
  const name = make('span', { className: 'what', textContent: colors[state.color][0].toUpperCase() + colors[state.color].slice(1) });
  if (state.color === 'meaningful') {
    const keys = MARKS.map((rgb, mark) => {
      const key = make('span', { className: 'swatch' });
      if (rgb) key.style.backgroundColor = `rgb(${rgb.join(' ')})`;
      return make('span', {}, key, MARK_NAMES[mark]);
    });
    return element('scale').replaceChildren(name, ...keys);
  }
  if (!scale) return element('scale').replaceChildren(name, make('span', { textContent: 'none at the projector’s output' }));
  const ramp = make('span', { className: 'ramp' });
  ramp.style.background = `linear-gradient(to right, ${STOPS.map((stop) => `rgb(${stop.join(' ')})`).join(', ')})`;
  const end = (number) => make('span', { className: 'number', textContent: written[state.color](number) });
  return element('scale').replaceChildren(name, make('span', { className: 'ramp-box' }, end(scale.low), ramp, end(scale.high)), make('span', { className: 'muted', textContent: scale.own ? 'in this layer' : state.color === 'weight' ? '' : 'in all layers' }));
}

function show() {
  const scale = state.color === 'meaningful' ? null : range(state.color);
  element('layer').value = state.layer;
  element('layer-name').textContent = layerName(state.layer);
  element('layer').setAttribute('aria-valuetext', layerName(state.layer));
  legend(scale);
  for (const one of views) {
    paint(one, scale);
    detail(one);
    plot(one);
  }
}

function choose(patch, focusIn) {
  state.patch = patch;
  for (const one of views) {
    one.cells.forEach((cell, other) => {
      cell.classList.toggle('chosen', other === patch);
      cell.tabIndex = other === patch ? 0 : -1;
    });
    detail(one);
  }
  if (focusIn) focusIn.cells[patch].focus({ preventScroll: false });
}

function step(layer) {
  const all = [...new Set(data.models.flatMap((model) => model.layers))].sort((a, b) => a - b);
  state.layer = Math.min(Math.max(layer, all[0]), all[all.length - 1]);
  show();
}

function keys(event, one) {
  const { side, places } = one.model;
  const place = places[state.patch];
  const find = (row, column) => places.findIndex((other) => Array.isArray(other) && other[0] === row && other[1] === column);
  const [row, column] = Array.isArray(place) ? place : [-1, Math.min(state.patch, side - 1)];
  const moves = {
    ArrowLeft: () => (row < 0 ? state.patch - 1 : find(row, column - 1)),
    ArrowRight: () => (row < 0 ? state.patch + 1 : find(row, column + 1)),
    ArrowUp: () => (row === 0 ? places.findIndex((other) => !Array.isArray(other)) : find(row - 1, column)),
    ArrowDown: () => find(row + 1, column),
    Home: () => places.findIndex((other) => Array.isArray(other) && other[0] === row),
    End: () => find(row, side - 1),
  };
  if (moves[event.key]) {
    const patch = moves[event.key]();
    if (patch >= 0 && patch < places.length) choose(patch, one);
  } else if (event.key === 'PageUp') step(state.layer - 1);
  else if (event.key === 'PageDown') step(state.layer + 1);
  else return;
  event.preventDefault();
}

function options(select, names, chosen) {
  select.append(...Object.entries(names).map(([value, text]) => make('option', { value, textContent: text, selected: value === String(chosen) })));
}

const views = data.models.map(view);
const layers = data.models.flatMap((model) => model.layers);
Object.assign(element('layer'), { min: Math.min(...layers), max: Math.max(...layers) });
state.layer = Math.min(...layers);
options(element('color'), colors, state.color);
const given = Object.keys(kinds).filter((kind) => data.models.every((model) => model.images.every((image) => image[kind])));
options(element('kind'), Object.fromEntries(given.map((kind) => [kind, kinds[kind]])), state.kind);
element('pick-kind').hidden = given.length < 2;
options(element('image'), Object.fromEntries(data.models[0].images.map((image, at) => [at, `${at + 1}: ${image.name}`])), 0);
element('pick-image').hidden = data.models[0].images.length < 2;
state.patch = Math.max(0, data.models[0].places.findIndex(Array.isArray));

element('layer').addEventListener('input', (event) => step(Number(event.target.value)));
element('overlay').addEventListener('input', (event) => { state.overlay = event.target.value / 100; show(); });
for (const name of ['color', 'kind']) element(name).addEventListener('change', (event) => { state[name] = event.target.value; show(); });
element('image').addEventListener('change', (event) => { state.image = Number(event.target.value); show(); });
element('controls').addEventListener('submit', (event) => event.preventDefault());
let mouse = [NaN, NaN];
for (const one of views) {
  const pick = (event) => {
    const cell = event.target.closest('.cell');
    if (cell && Number(cell.dataset.patch) !== state.patch) choose(Number(cell.dataset.patch));
  };
  for (const name of ['focusin', 'click']) one.section.addEventListener(name, pick);
  // Ignores events of a resting mouse under which the page moves, by keys or by the slider.
  one.section.addEventListener('pointerover', (event) => {
    const [x, y] = mouse;
    mouse = [event.screenX, event.screenY];
    if (mouse[0] !== x || mouse[1] !== y) pick(event);
  });
  one.section.addEventListener('keydown', (event) => event.target.closest('.cell') && keys(event, one));
}
// The URL may say what is shown: #layer=3&patch=7&color=angle&kind=logits&image=0
function obey() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  for (const name of ['color', 'kind', 'image']) {
    const select = element(name);
    if ([...select.options].some((option) => option.value === wanted.get(name))) {
      select.value = wanted.get(name);
      state[name] = name === 'image' ? Number(select.value) : select.value;
    }
  }
  const patch = Number(wanted.get('patch') ?? NaN);
  if (Number.isInteger(patch) && patch >= 0 && patch < data.models[0].places.length) state.patch = patch;
  const layer = Number(wanted.get('layer') ?? NaN);
  step(Number.isInteger(layer) ? layer : state.layer);
}
window.addEventListener('hashchange', obey);
new ResizeObserver(show).observe(element('views'));
obey();
