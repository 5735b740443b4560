// Cards of the views: image, numbers of the camera, hold, redraw, look, copy, delete.
import { degrees, lensOf, viewOf } from "./cameras.js";
import { drawSegment, raySegment } from "./epipolar.js";
import { colorOf } from "./rig.js";

const NUMBERS = [
  ["elevation", "Elevation", -90, 90, 1, "°"],
  ["azimuth", "Azimuth", -180, 180, 1, "°"],
  ["radius", "Radius", 0.5, 20, 0.1, ""],
  ["fov", "Field of view", 5, 120, 1, "°"],
];
export const BAND = 6; // pixels of the image

export function make(tag, fields = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(fields)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export class Views {
  // `events`: select(id), change(id, values), hold(id), redraw(id), look(id), copy(id), remove(id).
  constructor(list, events) {
    this.list = list;
    this.events = events;
    this.cards = new Map();
    this.pixel = null; // {id, x, y, isKept}
  }

  show(items, size, selected, isBusy) {
    this.items = items;
    this.size = size;
    const present = new Set(items.map(({ camera }) => camera.id));
    for (const [id, card] of this.cards) {
      if (!present.has(id)) {
        card.root.remove();
        this.cards.delete(id);
      }
    }
    items.forEach((item, index) => {
      const { id } = item.camera;
      if (!this.cards.has(id)) this.cards.set(id, this.makeCard(id));
      const card = this.cards.get(id);
      if (this.list.children[index] !== card.root) {
        this.list.insertBefore(card.root, this.list.children[index] ?? null);
      }
      this.update(card, item, index, id === selected, isBusy);
    });
    if (this.pixel && !present.has(this.pixel.id)) this.pixel = null;
    this.drawBands();
  }

  makeCard(id) {
    const events = this.events;
    const image = make("img", { alt: "", draggable: false });
    const bands = make("canvas", { tabIndex: 0, role: "img" });
    const name = make("b");
    const mark = make("span", { className: "mark" });
    const button = (label, title, run) =>
      make("button", { type: "button", title, onclick: () => run(id) }, label);
    const hold = button("Hold", "Keep this view as it is while others are drawn", events.hold);
    const redraw = button("Redraw", "Draw this view again and keep all others", events.redraw);
    const inputs = NUMBERS.map(([field, label, min, max, step, unit]) => {
      const input = make("input", { type: "number", min, max, step });
      input.addEventListener("change", () => {
        if (input.value !== "" && input.checkValidity()) {
          events.change(id, { [field]: Number(input.value) });
        } else {
          input.reportValidity();
        }
      });
      return [field, input, make("label", {}, label + (unit ? ` (${unit})` : ""), input)];
    });
    const root = make("article", { className: "view", onclick: () => events.select(id) },
      make("div", { className: "frame" }, image, bands,
        make("span", { className: "empty", textContent: "not drawn yet" })),
      make("header", {}, make("i", { className: "dot" }), name, mark, hold, redraw),
      make("details", {}, make("summary", { textContent: "Camera" }),
        make("div", { className: "numbers" }, ...inputs.map(([, , label]) => label)),
        make("div", { className: "row" },
          button("Look from here", "Look at the rig from this camera", events.look),
          button("Duplicate", "Add a copy of this camera", events.copy),
          button("Delete", "Delete this camera", events.remove))));
    this.listen(bands, id);
    return { root, image, bands, name, mark, hold, redraw, inputs };
  }

  update(card, item, index, isSelected, isBusy) {
    const { camera, image, isHeld, isStale, isPreview } = item;
    card.root.classList.toggle("selected", isSelected);
    card.root.classList.toggle("stale", Boolean(isStale && image));
    card.root.classList.toggle("held", isHeld);
    card.root.classList.toggle("blank", !image);
    card.root.style.setProperty("--own", colorOf(index));
    card.name.textContent = `View ${index}`;
    card.mark.textContent = isPreview ? "drawing" : isStale && image ? "camera moved" : "";
    card.image.hidden = !image;
    if (image && card.image.src !== image) card.image.src = image;
    const { width, height } = this.size;
    card.image.width = card.bands.width = width;
    card.image.height = card.bands.height = height;
    // A finer canvas, so that bands have smooth edges.
    const zoom = this.zoom();
    card.bands.width = width * zoom;
    card.bands.height = height * zoom;
    card.bands.setAttribute("aria-label",
      `view ${index}; arrow keys move a pixel, whose ray is shown in the others`);
    card.hold.setAttribute("aria-pressed", isHeld);
    card.hold.textContent = isHeld ? "Held" : "Hold";
    card.hold.disabled = !image || isPreview || (isStale && !isHeld);
    card.redraw.disabled = !image || isBusy;
    for (const [field, input] of card.inputs) {
      const value = field === "fov" && camera.lens
        ? degrees(2 * Math.atan(width / 2 / lensOf(camera, this.size)[0])) : camera[field];
      if (document.activeElement !== input) input.value = Math.round(value * 100) / 100;
      input.setAttribute("aria-label", `${field} of view ${index}`);
    }
  }

  zoom() {
    return Math.max(1, Math.ceil(480 / Math.max(this.size.width, this.size.height)));
  }

  listen(canvas, id) {
    const follow = (event) => {
      const box = canvas.getBoundingClientRect();
      this.moveTo(id, (event.clientX - box.left) / box.width * this.size.width,
        (event.clientY - box.top) / box.height * this.size.height);
    };
    canvas.addEventListener("pointermove", (event) => {
      if (!this.pixel?.isKept) follow(event);
    });
    canvas.addEventListener("pointerdown", (event) => {
      if (!this.pixel?.isKept || event.pointerType !== "mouse") follow(event);
    });
    // A finger that is lifted leaves, too; what it touched stays.
    canvas.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse" && this.pixel && !this.pixel.isKept) this.clear();
    });
    canvas.addEventListener("keydown", (event) => {
      const step = event.shiftKey ? 10 : 1;
      const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step],
        ArrowDown: [0, step] }[event.key];
      const { x, y } = this.pixel?.id === id ? this.pixel
        : { x: this.size.width / 2, y: this.size.height / 2 };
      if (move) this.moveTo(id, x + move[0], y + move[1]);
      else if (event.key === "Enter" && this.pixel) this.pixel.isKept = !this.pixel.isKept;
      else if (event.key === "Escape") this.clear();
      else return;
      event.preventDefault();
    });
  }

  moveTo(id, x, y) {
    const center = (value, size) => Math.min(size - 1, Math.max(0, Math.floor(value))) + 0.5;
    this.pixel = { id, x: center(x, this.size.width), y: center(y, this.size.height),
      isKept: this.pixel?.isKept ?? false };
    this.scheduleBands();
  }

  clear() {
    this.pixel = null;
    this.scheduleBands();
  }

  scheduleBands() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.drawBands();
    });
  }

  drawBands() {
    const zoom = this.zoom();
    const { width, height } = this.size;
    const color = getComputedStyle(document.documentElement).getPropertyValue("--accent").trim();
    const source = this.pixel && this.items.find(({ camera }) => camera.id === this.pixel.id);
    const from = source && viewOf(source.camera, this.size);
    for (const { camera } of this.items ?? []) {
      const context = this.cards.get(camera.id).bands.getContext("2d");
      context.setTransform(zoom, 0, 0, zoom, 0, 0);
      context.clearRect(0, 0, width, height);
      if (!source) continue;
      const screen = width / Math.max(1, context.canvas.clientWidth);
      if (camera.id === this.pixel.id) {
        context.globalAlpha = 1;
        for (const [style, thickness] of [["#fff", 5], [color, 2.5]]) {
          context.strokeStyle = style;
          context.lineWidth = thickness * screen;
          context.beginPath();
          context.arc(this.pixel.x, this.pixel.y, 8 * screen, 0, 2 * Math.PI);
          context.stroke();
        }
        continue;
      }
      const { x, y } = this.pixel;
      const segment = raySegment(from, x, y, viewOf(camera, this.size), this.size, 2 * BAND + 4);
      if (!segment) continue;
      drawSegment(context, segment, BAND, color, 0.4);
      drawSegment(context, segment, Math.min(BAND, 1.5 * screen), color, 0.9);
    }
  }
}
