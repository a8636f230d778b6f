// The easel: brushes by name, tools, and a canvas whose pixels are those of a label map.
//
// gradio runs this as the body of a function with `element`, `props` and `watch` (gr.HTML).
// props.easel  {size, names, titles, colours}: side in pixels; name, tooltip and colour by class
// props.value  {start, labels}: base64 of bytes; set here after every stroke, and by the server
// props.photo  address of a picture to show beneath, or null

const {size, names, titles, colours} = props.easel;
const MOST_STEPS = 100;
// Pixels of a canvas in memory: alpha, blue, green, red.
const packed = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
const shown = new Uint32Array(256).fill(packed([128, 128, 128]));
colours.forEach((c, id) => {
  shown[id] = packed([1, 3, 5].map((i) => parseInt(c.slice(i, i + 2), 16)));
});

const state = {
  labels: new Uint8Array(size * size), start: new Uint8Array(size * size),
  done: [], undone: [], brush: 0, tool: "paint", last: null,
};

// --- Parts

const make = (tag, attributes = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...children);
  return node;
};
const button = (text, title, onclick) => make("button", {type: "button", title, onclick}, text);
const choice = (group, className, checked, onchange, ...inside) =>
  make("label", {className}, make("input", {type: "radio", name: group, checked, onchange}),
    ...inside);

const brushes = names.map((name, id) => {
  const swatch = make("i");
  swatch.style.background = colours[id];
  const chosen = () => { state.brush = id; if (state.tool === "erase") useTool("paint"); };
  const label = choice("easel-brush", "brush", id === 0, chosen, swatch, make("span", {}, name));
  label.title = titles[id];
  return label;
});
const tools = {
  paint: ["Brush", "paint with the chosen class"],
  erase: ["Eraser", "bring back what was there at the start"],
  fill: ["Fill", "fill a connected region with the chosen class"],
};
const toolLabels = Object.entries(tools).map(([tool, [text, title]]) => {
  const label = choice("easel-tool", "tool", tool === "paint", () => useTool(tool), text);
  label.title = title;
  return [tool, label];
});
const widest = Math.max(8, Math.round(size / 4));
const width = make("input", {type: "range", min: 1, max: widest, title: "[ and ] change it",
  value: Math.max(1, Math.round(size / 16)), className: "width"});
const widthText = make("output");
const undo = button("Undo", "Ctrl+Z", () => step(state.done, state.undone));
const redo = button("Redo", "Ctrl+Y", () => step(state.undone, state.done));
const all = button("Fill all", "the whole mask with the chosen class", () =>
  change((labels) => labels.fill(state.brush)));
const again = button("Start again", "the mask as it was at the start", () =>
  change((labels) => labels.set(state.start)));
const veil = make("input", {type: "range", min: 10, max: 100, value: 55, className: "veil"});
const veilLabel = make("label", {className: "veil-label"}, "Mask", veil);
const photo = make("img", {alt: "photo"});
const canvas = make("canvas", {width: size, height: size});
const ring = make("div", {className: "ring"});
const under = make("span", {className: "under"});
const board = make("div", {className: "board"}, photo, canvas, ring);

element.querySelector(".easel").append(
  make("div", {className: "palette"}, ...brushes),
  make("div", {className: "desk"},
    make("div", {className: "tools"}, make("span", {className: "group"},
      ...toolLabels.map(([, label]) => label)),
      make("label", {className: "width-label"}, "Width", width, widthText),
      make("span", {className: "group right"}, undo, redo)),
    board,
    make("div", {className: "tools below"}, under, veilLabel,
      make("span", {className: "group right"}, all, again))));

// --- The label map

const decode = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const encode = (bytes) => {
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) {
    text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  }
  return btoa(text);
};

const draw = () => {
  const context = canvas.getContext("2d");
  const picture = context.createImageData(size, size);
  const pixels = new Uint32Array(picture.data.buffer);
  state.labels.forEach((label, i) => { pixels[i] = shown[label]; });
  context.putImageData(picture, 0, 0);
  undo.disabled = !state.done.length;
  redo.disabled = !state.undone.length;
};

const send = () => {
  props.value = {start: props.value.start, labels: encode(state.labels)};
  draw();
};

const remember = () => {
  state.done.push(state.labels.slice());
  if (state.done.length > MOST_STEPS) state.done.shift();
  state.undone = [];
};

const change = (how) => { remember(); how(state.labels); send(); };

const step = (from, to) => {
  if (!from.length || state.last) return;
  to.push(state.labels);
  state.labels = from.pop();
  send();
};

const receive = () => {
  photo.hidden = veilLabel.hidden = !props.photo;
  if (props.photo) photo.src = props.photo;
  canvas.style.opacity = props.photo ? veil.value / 100 : 1;
  if (props.value.labels !== encode(state.labels) || props.value.start !== encode(state.start)) {
    Object.assign(state, {done: [], undone: [], last: null});
    state.start = decode(props.value.start);
    state.labels = decode(props.value.labels);
  }
  draw();
};

// --- Painting

const useTool = (tool) => {
  state.tool = tool;
  for (const [name, label] of toolLabels) label.firstChild.checked = name === tool;
};

const place = (event) => {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * size,
    (event.clientY - box.top) / box.height * size];
};
const inside = (x, y) => x >= 0 && y >= 0 && x < size && y < size;
const index = (x, y) => Math.floor(y) * size + Math.floor(x);

const dab = (x, y) => {
  const radius = width.value / 2;
  const touch = (i) => {
    state.labels[i] = state.tool === "erase" ? state.start[i] : state.brush;
  };
  // A narrow brush may miss all pixel centres, but must paint the pixel that it is in.
  if (inside(x, y)) touch(index(x, y));
  for (let row = Math.floor(y - radius); row <= y + radius; row++) {
    for (let column = Math.floor(x - radius); column <= x + radius; column++) {
      const near = (column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2 <= radius ** 2;
      if (near && inside(column, row)) touch(row * size + column);
    }
  }
};

const stroke = ([x0, y0], [x1, y1]) => {
  const count = Math.max(1, Math.ceil(2 * Math.hypot(x1 - x0, y1 - y0)));
  for (let i = 1; i <= count; i++) {
    dab(x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count);
  }
};

const flood = (first) => {
  const before = state.labels[first];
  const open = before === state.brush ? [] : [first];
  while (open.length) {
    const i = open.pop();
    if (state.labels[i] !== before) continue;
    state.labels[i] = state.brush;
    const x = i % size;
    if (x > 0) open.push(i - 1);
    if (x < size - 1) open.push(i + 1);
    if (i >= size) open.push(i - size);
    if (i < size * (size - 1)) open.push(i + size);
  }
};

const pick = (x, y) => brushes[state.labels[index(x, y)]]?.querySelector("input").click();

canvas.onpointerdown = (event) => {
  const [x, y] = place(event);
  event.preventDefault();
  if (!inside(x, y)) return;
  if (event.button === 2 || event.altKey) return pick(x, y);
  if (event.button !== 0) return;
  if (state.tool === "fill") return change(() => flood(index(x, y)));
  canvas.setPointerCapture(event.pointerId);
  remember();
  state.last = [x, y];
  dab(x, y);
  draw();
};
canvas.onpointermove = (event) => {
  const [x, y] = place(event);
  look(x, y);
  if (!state.last) return;
  const since = event.getCoalescedEvents?.() ?? [];
  for (const one of since.length ? since : [event]) {
    stroke(state.last, place(one));
    state.last = place(one);
  }
  draw();
};
canvas.onpointerup = canvas.onpointercancel = () => {
  if (!state.last) return;
  state.last = null;
  send();
};
canvas.oncontextmenu = (event) => event.preventDefault();
canvas.onpointerleave = () => { ring.hidden = true; under.textContent = hint; };

const hint = "Right click: pick a class";
const look = (x, y) => {
  ring.hidden = state.tool === "fill";
  ring.style.width = ring.style.height = `${100 * width.value / size}%`;
  ring.style.left = `${100 * x / size}%`;
  ring.style.top = `${100 * y / size}%`;
  if (inside(x, y)) under.textContent = names[state.labels[index(x, y)]] ?? "unlabelled";
};

width.oninput = () => { widthText.textContent = width.value; };
veil.oninput = () => { canvas.style.opacity = veil.value / 100; };

document.addEventListener("keydown", (event) => {
  if (event.target.closest("input:not([type=range], [type=radio]), textarea")) return;
  const key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey) {
    if (key === "z") (event.shiftKey ? redo : undo).click();
    else if (key === "y") redo.click();
    else return;
    event.preventDefault();
  } else if (key === "[" || key === "]") {
    width.value = Number(width.value) + (key === "]" ? 1 : -1);
    width.oninput();
  }
});

width.oninput();
ring.hidden = true;
under.textContent = hint;
receive();
watch(["value", "photo"], receive);
