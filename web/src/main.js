// The page of spad app: what a person does becomes state, and the state is shown.
import { getBlob, getJson, stream } from "./api.js";
import { camerasOf, copyOf, fieldsOf, orbitCamera, place, placeOf } from "./cameras.js";
import { Rig } from "./rig.js";
import { make, Views } from "./views.js";

const EXAMPLES = ["a red car", "a red house", "a blue chair", "an orange fox"];
const MOST_UNDO = 100;
const MOST_HISTORY = 24;
const $ = (id) => document.getElementById(id);

const state = {
  model: null,
  size: { width: 128, height: 128 },
  cameras: [],
  selected: null,
  results: new Map(), // by camera: {image, isStale, isHeld, isPreview}
  run: null, // record of what was drawn last
  phase: "loading", // or empty, queued, drawing, building, stopped, done, error, lost
  undo: [],
  history: [],
  abort: null,
};
const png = (text) => `data:image/png;base64,${text}`;
const webp = (text) => `data:image/webp;base64,${text}`;
const camera = (id) => state.cameras.find((one) => one.id === id);
const isBusy = () => state.abort !== null;
const isDrawn = () => state.run !== null
  && state.cameras.every(({ id }) => state.results.get(id)?.png && !state.results.get(id).isStale);

// Showing

let rig = null;
const views = new Views($("views"), {
  select,
  change: (id, values) => changeCamera(id, values),
  hold: (id) => {
    const result = state.results.get(id);
    result.isHeld = !result.isHeld;
    show();
  },
  redraw: (id) => {
    newSeed();
    draw(new Set(state.cameras.map((one) => one.id).filter((one) => one !== id)));
  },
  look: (id) => rig?.lookFrom(camera(id)),
  copy: (id) => addCamera(copyOf(camera(id)), 12),
  remove,
});
try {
  rig = new Rig($("scene"), { select, move: moveCamera });
} catch {
  document.querySelector(".stage").classList.add("flat");
  document.querySelector(".hint").textContent =
    "This browser shows no 3D here (WebGL is off). The cameras' numbers are below each view.";
}

function show() {
  const items = state.cameras.map((one) => {
    const result = state.results.get(one.id) ?? {};
    return { camera: one, image: result.image ?? null, isHeld: Boolean(result.isHeld),
      isStale: Boolean(result.isStale), isPreview: Boolean(result.isPreview) };
  });
  rig?.show(items, state.size, state.selected);
  views.show(items, state.size, state.selected, isBusy());
  const ready = state.model !== null && state.phase !== "lost";
  $("draw").disabled = isBusy() || !ready || state.cameras.length === 0;
  $("stop").disabled = !isBusy();
  $("undo").disabled = state.undo.length === 0;
  $("build").disabled = isBusy() || !isDrawn() || state.cameras.length < 3;
  $("zip").disabled = $("build").disabled && !isDrawn();
  $("sweep").disabled = isBusy() || !ready || state.cameras.length === 0;
  $("compare").disabled = document.querySelectorAll("#history input:checked").length !== 2;
  document.body.dataset.phase = state.phase;
}

function say(phase, sentence, progress = null) {
  state.phase = phase;
  $("status").textContent = sentence;
  $("status").classList.toggle("bad", phase === "error" || phase === "lost");
  if (progress === null) $("progress").removeAttribute("value");
  else $("progress").value = progress;
  $("progress").hidden = !["queued", "drawing", "building", "loading"].includes(phase);
  document.body.dataset.phase = phase;
}

// Cameras

function remember() {
  state.undo.push({ cameras: structuredClone(state.cameras), size: state.size });
  if (state.undo.length > MOST_UNDO) state.undo.shift();
}

// The camera is another than the view was drawn from.
function moved(id) {
  const result = state.results.get(id);
  if (result) Object.assign(result, { isStale: true, isHeld: false });
}

function select(id) {
  if (state.selected === id) return;
  state.selected = id;
  show();
}

function changeCamera(id, values) {
  remember();
  place(camera(id), values);
  moved(id);
  show();
}

let beforeDrag = null;
function moveCamera(id, point, isLast) {
  beforeDrag ??= { cameras: structuredClone(state.cameras), size: state.size };
  if (point) {
    place(camera(id), placeOf(point));
    moved(id);
  }
  if (isLast) {
    state.undo.push(beforeDrag);
    beforeDrag = null;
  }
  show();
}

function addCamera(one, turn = 0) {
  if (state.cameras.length >= state.model.most_views) {
    say("error", `The page takes up to ${state.model.most_views} cameras.`, 0);
    return;
  }
  remember();
  if (turn) place(one, { azimuth: one.azimuth + turn });
  state.cameras.push(one);
  state.selected = one.id;
  show();
}

function remove(id) {
  remember();
  state.cameras = state.cameras.filter((one) => one.id !== id);
  state.results.delete(id);
  show();
}

function setCameras(cameras, size = state.size) {
  remember();
  Object.assign(state, { cameras, size, selected: cameras[0]?.id ?? null, run: null });
  state.results.clear();
  show();
}

function rigCameras({ elevation, azimuth, radius, fov }) {
  return elevation.map((value, view) => orbitCamera(value, azimuth[view], radius[view], fov[view]));
}

// Requests

async function draw(kept = null) {
  if (isBusy() || !state.cameras.length || !$("request").reportValidity()) return;
  const ids = state.cameras.map(({ id }) => id);
  const held = {};
  ids.forEach((id, view) => {
    const result = state.results.get(id);
    if (result?.png && !result.isStale && (kept ? kept.has(id) : result.isHeld)) {
      held[view] = result.png;
    }
  });
  if (Object.keys(held).length === ids.length) {
    say("error", "All views are held; release one, or redraw one.", 0);
    return;
  }
  const done = await run("draw", { ...asked(), held }, "drawing", (message) => {
    if (!message.images) return;
    message.images.forEach((text, view) => {
      if (view in held) return;
      const before = state.results.get(ids[view]);
      state.results.set(ids[view], { ...before, image: webp(text), isPreview: true });
    });
    show();
  });
  for (const result of state.results.values()) {
    if (done === null && result.isPreview) {
      Object.assign(result, { isPreview: false, isStale: true, isHeld: false });
    }
  }
  if (done !== null) finish(ids, done, new Set(Object.keys(held).map((view) => ids[view])));
  show();
}

function finish(ids, done, held) {
  // The model that was built is of other views.
  forgetModel();
  ids.forEach((id, view) => {
    if (!camera(id)) return;
    const text = done.images[view];
    const isHeld = held.has(id) && Boolean(state.results.get(id)?.isHeld);
    state.results.set(id, { image: png(text), png: text, isStale: false, isPreview: false, isHeld });
  });
  state.run = done.run;
  showScores(done.scores);
  $("reading").textContent = done.notes.join(" ");
  const { read_as: readAs, prompt, seconds } = done.run;
  const read = readAs === prompt ? "" : ` (read as “${readAs}”)`;
  say("done", `${ids.length} views of ${prompt}${read} in ${seconds.toFixed(1)} s.`, 1);
  state.history.unshift({ ...snapshot(), scores: done.scores });
  state.history.length = Math.min(state.history.length, MOST_HISTORY);
  showHistory();
}

function showScores({ photo_consistency: value }) {
  $("score").textContent = value === null ? "" : `${Math.round(100 * value)} % of the pixels agree`;
  $("score").title = "Share of pixels whose color two other views confirm at one point in space; "
    + "renders of real models reach 70 to 100 %.";
}

// What the server is asked to draw.
function asked() {
  return { prompt: $("prompt").value.trim(), cameras: fieldsOf(state.cameras, state.size),
    steps: $("steps").valueAsNumber, guidance_scale: $("guidance").valueAsNumber,
    seed: $("seed").valueAsNumber };
}

// A long request; its last message, or null if it was stopped or failed.
async function run(name, body, phase, onMessage) {
  state.abort = new AbortController();
  say(phase, "Waiting for the server…");
  show();
  let done = null;
  try {
    for await (const message of stream(name, body, state.abort.signal)) {
      if (message.kind === "queued") {
        say("queued", message.ahead === 1 ? "1 request is before this one."
          : `${message.ahead} requests are before this one.`);
      } else if (message.kind === "loading") say(phase, "Loading the model…");
      else if (message.kind === "building") say(phase, "Building the model…");
      else if (message.kind === "step") {
        say(phase, `Drawing, step ${message.step} of ${message.steps}.`,
          message.step / message.steps);
      } else if (message.kind === "error") say("error", message.message, 0);
      else if (message.kind === "stopped") say("stopped", "Stopped.", 0);
      else if (message.kind === "done") done = message;
      onMessage?.(message);
    }
  } catch (error) {
    if (error.name === "AbortError") say("stopped", "Stopped.", 0);
    else if (error.lost) lose();
    else say("error", error.message, 0);
  }
  state.abort = null;
  return done;
}

// Ask again until the server is back.
async function lose() {
  say("lost", "The server does not answer. Is spad app still running? Trying again…", 0);
  show();
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 1000));
    try {
      await getJson("model");
      say("empty", "The server is back.", 0);
      show();
      return;
    } catch (error) {
      if (!error.lost) {
        say("lost", "The server was started anew. Load the page again.", 0);
        return;
      }
    }
  }
}

// Quick requests: an error is shown, and null comes back.
async function quick(promise) {
  try {
    return await promise;
  } catch (error) {
    if (error.lost) lose();
    else say("error", error.message, 0);
    return null;
  }
}

const drawnViews = () => ({ cameras: fieldsOf(state.cameras, state.size), prompt: state.run.prompt,
  images: state.cameras.map(({ id }) => state.results.get(id).png), run: state.run });

async function build() {
  const done = await run("build", drawnViews(), "building");
  if (done !== null) {
    const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    for (const kind of ["glb", "ply"]) {
      const link = $(kind);
      if (link.href) URL.revokeObjectURL(link.href);
      link.href = URL.createObjectURL(new Blob([bytes(done[kind])]));
      link.hidden = false;
    }
    $("notes").replaceChildren(...done.notes.map((note) => make("p", { textContent: note })));
    await rig?.showModel(bytes(done.glb).buffer);
    state.glb = bytes(done.glb).buffer;
    Object.assign($("shown"), { disabled: !rig, checked: Boolean(rig) });
    say("done", "The model is built.", 1);
  }
  show();
}

function forgetModel() {
  rig?.hideModel();
  Object.assign($("shown"), { disabled: true, checked: false });
  for (const kind of ["glb", "ply"]) $(kind).hidden = true;
  $("notes").replaceChildren();
}

function save(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// Files

async function importFiles(list) {
  const files = {};
  for (const file of list) {
    const data = new Uint8Array(await file.arrayBuffer());
    let text = "";
    for (let i = 0; i < data.length; i += 32768) {
      text += String.fromCharCode(...data.subarray(i, i + 32768));
    }
    files[file.name] = btoa(text);
  }
  const fields = await quick(getJson("import", { files }));
  if (!fields) return;
  setCameras(camerasOf(fields), { width: fields.width, height: fields.height });
  const inside = state.cameras.findIndex(({ radius }) => radius < 1);
  if (inside >= 0) say("error", `Camera ${inside} is inside the ball that holds the object.`, 0);
  else say("empty", `${state.cameras.length} cameras imported.`, 0);
}

// History

const snapshot = () => ({ ...drawnViews(), list: structuredClone(state.cameras), size: state.size,
  controls: ["prompt", "steps", "guidance", "seed"].map((id) => [id, $(id).value]) });

function showHistory() {
  $("history").replaceChildren(...state.history.map((one, index) => {
    const check = make("input", { type: "checkbox", onchange: show,
      ariaLabel: `compare ${one.run.prompt}, seed ${one.run.seed}` });
    check.dataset.index = index;
    return make("li", {},
      make("div", { className: "strip" }, ...one.images.slice(0, 4).map((text) =>
        make("img", { src: png(text), alt: "" }))),
      make("p", { textContent: one.run.prompt, title: one.run.prompt }),
      make("p", { textContent: `seed ${one.run.seed}, ${one.run.num_inference_steps} steps, `
        + `${one.run.guidance_scale}` }),
      make("div", { className: "row" }, check,
        make("button", { type: "button", onclick: () => restore(one) }, "Restore")));
  }));
}

function restore(one) {
  remember();
  state.cameras = one.list.map(copyOf);
  state.size = one.size;
  state.selected = state.cameras[0]?.id;
  state.results = new Map(state.cameras.map(({ id }, view) => [id,
    { image: png(one.images[view]), png: one.images[view], isStale: false }]));
  state.run = one.run;
  for (const [id, value] of one.controls) $(id).value = value;
  showScores(one.scores);
  say("done", `Restored: ${one.run.prompt}, seed ${one.run.seed}.`, 1);
  show();
}

function openDialog(title, ...body) {
  $("dialog-title").textContent = title;
  $("dialog-body").replaceChildren(...body);
  $("dialog").showModal();
}

function compare() {
  const chosen = [...document.querySelectorAll("#history input:checked")]
    .map((box) => state.history[box.dataset.index]);
  openDialog("Compare", ...chosen.flatMap((one) => [
    make("p", { textContent: `${one.run.prompt}, seed ${one.run.seed}, guidance `
      + `${one.run.guidance_scale}, ${one.run.num_inference_steps} steps` }),
    make("div", { className: "pair" }, ...one.images.map((text, view) =>
      make("img", { src: png(text), alt: `view ${view} of ${one.run.prompt}` }))),
  ]));
}

// The selected view at three strengths of guidance and three numbers of steps.
let isSweeping = false;
async function sweep() {
  isSweeping = true;
  const steps = $("steps").valueAsNumber;
  const guidance = $("guidance").valueAsNumber;
  const allSteps = [...new Set([Math.ceil(steps / 2), steps, Math.min(2 * steps,
    state.model.max_steps)])];
  const allGuidance = [...new Set([1, guidance, 2 * guidance])];
  const view = Math.max(0, state.cameras.findIndex(({ id }) => id === state.selected));
  const table = make("table", {}, make("tr", {}, make("th", { textContent: "guidance \\ steps" }),
    ...allSteps.map((value) => make("th", { textContent: value, scope: "col" }))));
  openDialog(`View ${view} by guidance and steps; choose one to draw all views so`, table);
  for (const scale of allGuidance) {
    const row = make("tr", {}, make("th", { textContent: scale, scope: "row" }));
    table.append(row);
    for (const count of allSteps) {
      const done = await run("draw", { ...asked(), steps: count, guidance_scale: scale }, "drawing");
      if (done === null || !isSweeping) {
        isSweeping = false;
        show();
        return;
      }
      const choose = () => {
        Object.assign($("steps"), { value: count });
        Object.assign($("guidance"), { value: scale });
        $("dialog").close();
        show();
        draw();
      };
      row.append(make("td", {}, make("button", { type: "button", onclick: choose,
        title: `guidance ${scale}, ${count} steps` },
      make("img", { src: png(done.images[view]), alt: `guidance ${scale}, ${count} steps` }))));
    }
  }
  isSweeping = false;
  say("done", "The table is drawn.", 1);
  show();
}

// Prompt

let readingTimer = null;
function readPrompt() {
  const text = $("prompt").value.trim();
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (caption) => words.every((word) => caption.toLowerCase().includes(word));
  const found = words.length ? state.model.captions.filter(fits) : state.model.captions;
  $("captions").replaceChildren(...found.slice(0, 12).map((value) => make("option", { value })));
  clearTimeout(readingTimer);
  readingTimer = setTimeout(async () => {
    if (!text) return;
    const read = await getJson("read", { prompt: text }).catch(() => null);
    if (read && $("prompt").value.trim() === text) $("reading").textContent = read.notes.join(" ");
  }, 600);
}

const newSeed = () => { $("seed").value = Math.floor(Math.random() * 1e6); };

// Wiring

$("request").addEventListener("submit", (event) => {
  event.preventDefault();
  draw();
});
$("stop").addEventListener("click", () => state.abort?.abort());
$("dice").addEventListener("click", newSeed);
$("prompt").addEventListener("input", readPrompt);
$("build").addEventListener("click", build);
$("compare").addEventListener("click", compare);
$("sweep").addEventListener("click", sweep);
$("close").addEventListener("click", () => $("dialog").close());
$("dialog").addEventListener("close", () => {
  if (isSweeping) state.abort?.abort();
  isSweeping = false;
});
$("add").addEventListener("click", () => {
  const { model } = state;
  const at = rig ? placeOf(rig.ownPlace()) : { elevation: 20, azimuth: -60 };
  addCamera(orbitCamera(at.elevation, at.azimuth, model.radius, model.fov));
});
$("undo").addEventListener("click", () => {
  const { cameras, size } = state.undo.pop();
  const before = new Map(state.cameras.map((one) => [one.id, JSON.stringify(one)]));
  Object.assign(state, { cameras, size });
  for (const one of cameras) if (before.get(one.id) !== JSON.stringify(one)) moved(one.id);
  show();
});
$("rigs").addEventListener("change", (event) => {
  setCameras(rigCameras(state.model.rigs[event.target.value]));
});
for (const button of document.querySelectorAll("[data-turn]")) {
  button.addEventListener("click", () => {
    const [azimuth, elevation] = button.dataset.turn.split(",").map(Number);
    remember();
    for (const one of state.cameras) {
      place(one, { azimuth: one.azimuth + azimuth, elevation: one.elevation + elevation });
      moved(one.id);
    }
    show();
  });
}
$("import").addEventListener("click", () => $("files").click());
$("files").addEventListener("change", async (event) => {
  await importFiles(event.target.files);
  event.target.value = "";
});
$("export").addEventListener("change", async (event) => {
  const { value } = event.target;
  event.target.value = "";
  const body = { cameras: fieldsOf(state.cameras, state.size), format: value };
  const blob = await quick(getBlob("export", body));
  if (blob) save(blob, value);
});
$("zip").addEventListener("click", async () => {
  const blob = await quick(getBlob("zip", drawnViews()));
  if (blob) save(blob, "views.zip");
});
$("shown").addEventListener("change", (event) => {
  if (event.target.checked) rig.showModel(state.glb);
  else rig.hideModel();
});
$("scene").addEventListener("keydown", (event) => {
  const at = state.cameras.findIndex(({ id }) => id === state.selected);
  const one = state.cameras[at];
  const step = event.shiftKey ? 1 : 5;
  const turn = { ArrowLeft: { azimuth: -step }, ArrowRight: { azimuth: step },
    ArrowUp: { elevation: step }, ArrowDown: { elevation: -step }, "+": { radius: -0.1 },
    "-": { radius: 0.1 } }[event.key];
  if (turn && one) {
    const [[field, change]] = Object.entries(turn);
    changeCamera(one.id, { [field]: one[field] + change });
  } else if (event.key === "PageDown" || event.key === "PageUp") {
    const next = at + (event.key === "PageDown" ? 1 : state.cameras.length - 1);
    select(state.cameras[next % state.cameras.length]?.id);
  } else if (event.key === "Delete" && one) {
    remove(one.id);
  } else {
    return;
  }
  event.preventDefault();
});

// Start

async function start() {
  const model = await quick(getJson("model"));
  if (!model) return;
  state.model = model;
  state.size = { width: model.image_size, height: model.image_size };
  $("model").textContent = model.name;
  $("steps").max = model.max_steps;
  $("steps").value = model.steps;
  $("guidance").value = model.guidance_scale;
  $("seed").value = 0;
  $("rigs").append(...model.rigs.map(({ label }, index) =>
    make("option", { value: index, textContent: label })));
  $("export").append(...model.formats.map((name) => make("option", { value: name,
    textContent: name })));
  $("prompt").value = EXAMPLES.find((one) => model.captions.includes(one)) ?? EXAMPLES[0];
  state.cameras = rigCameras(model.rigs[0]);
  state.selected = state.cameras[0].id;
  readPrompt();
  say("empty", "Ready.", 0);
  show();
  if (location.hash !== "#still") draw();
}

// For tests: what is shown, in the page's own terms.
window.spad = { state, rig, views, show, fields: () => fieldsOf(state.cameras, state.size) };
start();
