// Draws one section several times over: the H&E, and a map of spots for each set of values. All pictures share one view
// in µm. Which spot covers a pixel is found once for each view (`owner`) and used for every map, for the spot under
// the pointer and for the one that is clicked; so the time depends on the pixels, hardly on the number of spots.

const NARROW = 200; // px: with less room the pictures stand in two rows
const SHARP = 2; // pixels of the canvas for each of the page, in x and in y
const CROWDED = 8; // px of the canvas between spots: when nearer, they fill the tissue, since gaps would only flicker
const INK = "#111", RED = "#d1495b", NOT_KNOWN = 0xff959595;

const floats = (view) => new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));

function make(tag, className, parent) {
  const element = document.createElement(tag);
  element.className = className;
  parent.append(element);
  return element;
}

// The H&E in pale grey, so that spots can be read on it.
function pale(image, contrast) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width, image.height];
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const grey = (pixels.data[i] + pixels.data[i + 1] + pixels.data[i + 2]) / 3;
    pixels.data.fill(255 - (255 - grey) * contrast, i, i + 3);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

const pack = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0; // as a pixel of a canvas
const parse = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

// Keys pressed in the panel are its own. Up and down walk the list of genes but where a field needs them, Enter takes
// the first hit of the search, Escape forgets the regions. JupyterLab has an attribute for it, others do not know it.
function mindKeys(panel, model) {
  const before = (event) => {
    const field = event.target.closest("input, select, textarea, [role=slider]");
    const search = event.target.closest(".nh2st-search");
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (step && (search || !field)) {
      event.preventDefault();
      model.send({ step });
    } else if (event.key === "Enter" && search) model.send({ take: field.value });
    else if (event.key === "Escape" && !field) model.send({ forget: true });
  };
  const keep = (event) => event.stopPropagation();
  panel.tabIndex = -1; // a click anywhere in it takes the keys there
  panel.dataset.lmSuppressShortcuts = "true";
  panel.addEventListener("keydown", before, true); // the fields of ipywidgets pass nothing on
  for (const kind of ["keydown", "keypress", "keyup"]) panel.addEventListener(kind, keep);
}

// The still picture that a saved notebook shows; hidden while the panel lives.
function findStill(el, piece) {
  const area = piece && el.closest(".jp-OutputArea");
  const image = area && [...area.querySelectorAll("img")].find((one) => one.src.includes(piece));
  return image && (image.closest(".jp-OutputArea-child") || image);
}

function download(name, bytes) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function picture(model, name) {
  const view = model.get(name);
  if (!view || !view.byteLength) return null;
  const colour = await createImageBitmap(new Blob([view], { type: "image/jpeg" }));
  return { colour, pale: pale(colour, model.get("contrast")), extent: model.get(`${name}_extent`) };
}

function render({ model, el }) {
  const root = make("div", "nh2st-maps", el);
  let xy, radius, values, colours, maps, figures, heading, status;
  let panel = null, still = null, stale = false; // `stale`: the maps are others than those that are read
  let path = null; // of the region that is being drawn, µm
  let base = null, tile = null; // the section, and the visible part of it in more detail
  let view = null; // centre x, y in µm, and µm per px of the page
  let width = 0, height = 0, owner = new Int32Array(0), hovered = -1, waiting = false, asking = 0;
  const layer = document.createElement("canvas"); // the spots of one map
  const layerContext = layer.getContext("2d", { willReadFrequently: true });

  const whole = () => {
    const [left, right, bottom, top] = model.get("window");
    return { x: (left + right) / 2, y: (top + bottom) / 2, scale: Math.max((right - left) / width, (bottom - top) / height) };
  };
  const corner = () => [view.x - (width * view.scale) / 2, view.y - (height * view.scale) / 2];

  // --- what comes from Python ---

  function readSpots() {
    xy = floats(model.get("xy"));
    radius = floats(model.get("radius"));
    hovered = -1;
  }

  function readMaps() {
    const n = radius.length;
    const flat = floats(model.get("values"));
    maps = model.get("maps");
    values = maps.map((_, k) => flat.subarray(k * n, (k + 1) * n));
    colours = maps.map((map, k) => {
      const packed = (map.labels.length ? map.colours.map(parse) : model.get("colours")[map.cmap]).map(pack);
      const [low, high] = map.limits;
      const of = new Uint32Array(n), last = packed.length - 1;
      for (let i = 0; i < n; i++) {
        const share = (values[k][i] - low) / (high - low);
        of[i] = Number.isNaN(share) ? NOT_KNOWN : packed[Math.max(0, Math.min(last, Math.floor(share * (last + 1))))];
      }
      return of;
    });
  }

  function build() {
    root.replaceChildren();
    heading = make("div", "heading", root);
    figures = [null, ...maps].map((map, k) => {
      const figure = make("figure", "", root);
      const caption = make("figcaption", "", figure);
      const frame = make("div", "picture", figure);
      const canvas = make("canvas", "", frame);
      const cursor = make("canvas", "cursor", frame);
      const bar = make("div", "bar", figure);
      listen(cursor);
      return { map: k - 1, caption, frame, canvas, cursor, bar };
    });
    status = make("div", "status", root);
    label();
  }

  function label() {
    heading.replaceChildren();
    heading.hidden = !model.get("leads");
    make("b", "", heading).textContent = model.get("heading");
    make("span", "", heading).textContent = model.get("trust");
    for (const { map, caption, bar } of figures) {
      caption.textContent = map < 0 ? model.get("title") : maps[map].name;
      if (map < 0) continue;
      const { limits, cmap, unit, beyond, labels } = maps[map];
      bar.replaceChildren();
      bar.classList.toggle("legend", labels.length > 0);
      labels.forEach((name, i) => {
        const entry = make("span", "", bar);
        make("i", "", entry).style.background = maps[map].colours[i];
        entry.append(name);
      });
      if (labels.length) continue;
      const table = model.get("colours")[cmap];
      const stops = [0, 32, 64, 96, 128, 160, 192, 224, 255].map((i) => `rgb(${table[i].join(",")})`);
      make("span", "", bar).textContent = (beyond[0] ? "≤ " : "") + limits[0].toFixed(2);
      make("span", "colours", bar).style.background = `linear-gradient(to right, ${stops.join(",")})`;
      make("span", "", bar).textContent = (beyond[1] ? "≥ " : "") + limits[1].toFixed(2);
      make("span", "unit", bar).textContent = unit;
    }
    say(hovered);
  }

  // --- drawing ---

  function size() {
    const room = el.clientWidth;
    if (!room) return;
    attached();
    const n = figures.length;
    const columns = room / n >= NARROW ? n : Math.min(2, n);
    root.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
    const [left, right, bottom, top] = model.get("window");
    const aspect = Math.max(0.5, Math.min(columns < n ? 0.75 : 1.25, (bottom - top) / (right - left)));
    const zoom = view && width ? whole().scale / view.scale : 1;
    width = Math.max(40, Math.floor((room - 10 * (columns - 1)) / columns) - 2);
    height = Math.round(width * aspect);
    if (view) view.scale = whole().scale / zoom;
    else view = whole();
    for (const { frame, canvas, cursor } of figures) {
      frame.style.height = `${height}px`;
      for (const one of [canvas, cursor]) [one.width, one.height] = [SHARP * width, SHARP * height];
    }
    [layer.width, layer.height] = [SHARP * width, SHARP * height];
    redraw();
  }

  // Which spot covers each pixel; -1 where there is none.
  function cover() {
    const [w, h] = [layer.width, layer.height];
    if (owner.length !== w * h) owner = new Int32Array(w * h);
    owner.fill(-1);
    const [left, top] = corner();
    const factor = SHARP / view.scale;
    const cell = model.get("spacing") * factor;
    for (let i = 0; i < radius.length; i++) {
      const x = (xy[2 * i] - left) * factor, y = (xy[2 * i + 1] - top) * factor;
      const r = Math.max(cell < CROWDED ? 0.6 * cell : radius[i] * factor, 0.75);
      if (x + r < 0 || y + r < 0 || x - r > w || y - r > h) continue;
      const last = Math.min(h - 1, Math.floor(y + r - 0.5));
      for (let row = Math.max(0, Math.ceil(y - r - 0.5)); row <= last; row++) {
        const half = Math.sqrt(Math.max(0, r * r - (row + 0.5 - y) ** 2));
        const from = Math.max(0, Math.ceil(x - half - 0.5)), to = Math.min(w, Math.floor(x + half + 0.5));
        if (from < to) owner.fill(i, row * w + from, row * w + to);
      }
    }
  }

  function drawImage(context, image, kind) {
    if (!image) return;
    const [left, top] = corner();
    const factor = SHARP / view.scale;
    const [x0, x1, y1, y0] = image.extent;
    context.drawImage(image[kind], (x0 - left) * factor, (y0 - top) * factor, (x1 - x0) * factor, (y1 - y0) * factor);
  }

  function draw() {
    waiting = false;
    if (!view || !width || !radius) return;
    const started = performance.now();
    if (stale) newMaps();
    cover();
    const pixels = layerContext.createImageData(layer.width, layer.height);
    const packed = new Uint32Array(pixels.data.buffer);
    for (const { map, canvas } of figures) {
      const context = canvas.getContext("2d");
      context.fillStyle = "white";
      context.fillRect(0, 0, canvas.width, canvas.height);
      const kind = map < 0 ? "colour" : "pale";
      drawImage(context, base, kind);
      drawImage(context, tile, kind);
      if (map < 0) {
        scaleBar(context, canvas);
        continue;
      }
      const of = colours[map];
      for (let p = 0; p < owner.length; p++) packed[p] = owner[p] < 0 ? 0 : of[owner[p]];
      layerContext.putImageData(pixels, 0, 0);
      context.globalAlpha = model.get("opacity");
      context.drawImage(layer, 0, 0);
      context.globalAlpha = 1;
    }
    mark();
    Object.assign(root.dataset, {
      gene: model.get("gene"),
      scale: view.scale,
      tile: tile ? "yes" : "no",
      milliseconds: performance.now() - started,
      drawn: Number(root.dataset.drawn || 0) + 1,
    });
  }

  function redraw() {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  }

  function scaleBar(context, canvas) {
    const most = (width * view.scale) / 3.5; // µm
    const power = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].map((step) => step * power).find((step) => step <= most);
    const text = length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(1))} µm`;
    const long = (length / view.scale) * SHARP;
    context.font = `${12 * SHARP}px sans-serif`;
    const x = 12 * SHARP + Math.max(0, (context.measureText(text).width - long) / 2), y = canvas.height - 12 * SHARP;
    context.lineJoin = "round";
    context.textAlign = "center";
    for (const [ink, wide, halo] of [["white", 5, 3], [INK, 2.5, 0]]) { // white round black is read on any tissue
      Object.assign(context, { strokeStyle: ink, fillStyle: ink, lineWidth: wide * SHARP });
      context.beginPath();
      context.moveTo(x, y);
      context.lineTo(x + long, y);
      context.stroke();
      context.lineWidth = halo * SHARP;
      if (halo) context.strokeText(text, x + long / 2, y - 6 * SHARP);
      else context.fillText(text, x + long / 2, y - 6 * SHARP);
    }
  }

  // A ring round the spot under the pointer and round the chosen one, at the same place in all pictures.
  function mark() {
    const [left, top] = corner();
    const factor = SHARP / view.scale;
    for (const { cursor } of figures) {
      const context = cursor.getContext("2d");
      context.clearRect(0, 0, cursor.width, cursor.height);
      for (const [i, wide] of [[hovered, 1.2], [model.get("picked"), 2.2]]) {
        if (i < 0 || i >= radius.length) continue;
        const r = Math.max(radius[i] * factor, 3 * SHARP) + SHARP;
        for (const [ink, extra] of [["white", 2.4], [wide > 2 ? RED : INK, 0]]) {
          context.beginPath();
          context.arc((xy[2 * i] - left) * factor, (xy[2 * i + 1] - top) * factor, r, 0, 2 * Math.PI);
          Object.assign(context, { strokeStyle: ink, lineWidth: (wide + extra) * SHARP });
          context.stroke();
        }
      }
      const outline = path || model.get("outline");
      for (const [ink, wide] of outline.length ? [["white", 4], [RED, 2]] : []) {
        context.beginPath();
        for (let i = 0; i < outline.length; i += 2) {
          context.lineTo((outline[i] - left) * factor, (outline[i + 1] - top) * factor);
        }
        if (!path) context.closePath();
        Object.assign(context, { strokeStyle: ink, lineWidth: wide * SHARP, lineJoin: "round" });
        context.stroke();
      }
    }
  }

  function say(i) {
    if (i < 0) {
      status.textContent = "wheel: zoom · drag: move · double click: all · click: a spot · shift and drag: a region";
      return;
    }
    const told = (map, v) => (Number.isNaN(v) ? "not known" : map.labels.length ? map.labels[v] : v.toFixed(2));
    status.textContent = maps.map((map, k) => `${map.name} ${told(map, values[k][i])}`).join(" · ");
  }

  // --- pointer ---

  function changed() {
    const full = whole();
    view.scale = Math.max(full.scale / 200, Math.min(full.scale * 1.5, view.scale));
    const [left, right, bottom, top] = model.get("window");
    view.x = Math.max(left, Math.min(right, view.x));
    view.y = Math.max(top, Math.min(bottom, view.y));
    redraw();
    clearTimeout(asking);
    asking = setTimeout(() => { // more detail of what is seen, once it stands still
      const [x, y] = corner();
      model.set("view", [x, y, x + width * view.scale, y + height * view.scale]);
      model.save_changes();
    }, 200);
  }

  // The spot under the pointer; for a click also one that lies near it.
  function spotAt(event, near) {
    const x = Math.floor(event.offsetX * SHARP), y = Math.floor(event.offsetY * SHARP);
    if (x < 0 || y < 0 || x >= layer.width || y >= layer.height) return -1;
    let found = owner[y * layer.width + x];
    if (found >= 0 || !near) return found;
    const [cx, cy] = placeOf(event);
    let closest = Infinity;
    for (let i = 0; i < radius.length; i++) {
      const distance = Math.hypot(xy[2 * i] - cx, xy[2 * i + 1] - cy) - 3 * radius[i];
      if (distance < Math.min(0, closest)) [found, closest] = [i, distance];
    }
    return found;
  }

  function point(i) {
    hovered = i;
    say(i);
    requestAnimationFrame(mark);
  }

  const placeOf = (event) => {
    const [left, top] = corner();
    return [left + event.offsetX * view.scale, top + event.offsetY * view.scale]; // µm
  };

  function setOutline(outline) {
    path = null;
    model.set("outline", outline);
    model.save_changes();
    mark();
  }

  function listen(cursor) {
    let from = null;
    cursor.addEventListener("wheel", (event) => {
      event.preventDefault();
      const [x, y] = placeOf(event); // stays where it is
      const full = whole().scale;
      const turned = Math.max(-240, Math.min(240, event.deltaY * (event.deltaMode ? 40 : 1)));
      const scale = Math.max(full / 200, Math.min(full * 1.5, view.scale * 1.0018 ** turned));
      view = { x: x + ((view.x - x) * scale) / view.scale, y: y + ((view.y - y) * scale) / view.scale, scale };
      changed();
    }, { passive: false });
    cursor.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      cursor.setPointerCapture(event.pointerId);
      if (event.shiftKey || model.get("drawing")) path = placeOf(event);
      from = { x: event.clientX, y: event.clientY, view: { ...view }, moved: false };
    });
    cursor.addEventListener("pointermove", (event) => {
      if (!from) {
        const i = spotAt(event, false);
        if (i !== hovered) point(i);
        return;
      }
      const [dx, dy] = [event.clientX - from.x, event.clientY - from.y];
      if (Math.hypot(dx, dy) < 4 && !from.moved) return;
      from.moved = true;
      if (path) {
        path.push(...placeOf(event));
        requestAnimationFrame(mark);
        return;
      }
      cursor.classList.add("moving");
      view = { x: from.view.x - dx * view.scale, y: from.view.y - dy * view.scale, scale: view.scale };
      changed();
    });
    cursor.addEventListener("pointerup", (event) => {
      const click = from && !from.moved;
      from = null;
      cursor.classList.remove("moving");
      if (path) {
        setOutline(path.length > 4 ? path : []);
        return;
      }
      const i = click ? spotAt(event, true) : -1;
      if (i < 0) return;
      model.set("picked", i);
      model.save_changes();
    });
    cursor.addEventListener("pointercancel", () => { from = path = null; });
    cursor.addEventListener("pointerleave", () => point(-1));
    cursor.addEventListener("dblclick", () => { view = whole(); changed(); });
  }

  // --- what changes ---

  async function newSection() {
    tile = null;
    base = null;
    readSpots();
    readMaps();
    build();
    view = null;
    size();
    const section = model.get("section");
    const image = await picture(model, "image");
    if (section !== model.get("section")) return; // another one was chosen meanwhile
    base = image;
    redraw();
  }

  function newMaps() {
    if (model.get("values").byteLength !== 4 * radius.length * model.get("maps").length) return; // its section follows
    stale = false;
    readMaps();
    if (maps.length === figures.length - 1) label();
    else {
      build();
      size();
    }
  }

  function attached() {
    still = still || findStill(el, model.get("leads") && model.get("still"));
    if (still) still.style.display = "none";
    if (panel || !(panel = el.closest(".nh2st-explore")) || !model.get("leads")) return;
    mindKeys(panel, model);
  }

  const others = () => { stale = true; redraw(); };
  const on = {
    "change:section": newSection,
    "change:values": others,
    "change:maps": others,
    "change:window": () => { view = null; size(); },
    "change:outline": () => view && mark(),
    "msg:custom": (content, buffers) => content.save && download(content.save, buffers[0]),
    "change:tile": async () => { tile = await picture(model, "tile"); redraw(); },
    "change:picked": () => view && mark(),
    "change:opacity": redraw,
  };
  for (const [event, act] of Object.entries(on)) model.on(event, act);
  const watcher = new ResizeObserver(() => size());
  newSection();
  watcher.observe(el);
  return () => {
    watcher.disconnect();
    clearTimeout(asking);
    if (still) still.style.display = "";
    for (const [event, act] of Object.entries(on)) model.off(event, act);
  };
}

export default { render };
