// The rig: cameras as frusta that carry their views, round the ball that holds the object.
import {
  AmbientLight, ArrowHelper, BufferAttribute, BufferGeometry, CanvasTexture, Color,
  DirectionalLight, DoubleSide, GLTFLoader, Group, LineBasicMaterial, LineLoop, LineSegments,
  Mesh, MeshBasicMaterial, OrbitControls, PerspectiveCamera, Raycaster, SRGBColorSpace, Scene,
  Sphere, Sprite, SpriteMaterial, Texture, Vector2, Vector3, WebGLRenderer,
} from "./three.js";
import { lensOf, poseOf } from "./cameras.js";

const DEPTH = 0.9; // of a frustum's image, in world units
const FRONT = [0, -1, 0];

// Colors of cameras, told apart by most eyes, in light and dark.
export const COLORS = ["#e69f00", "#3aa0e0", "#009e73", "#cc79a7", "#d55e00", "#7a6ff0", "#8a9a1f",
  "#b04a4a"];
export const colorOf = (index) => COLORS[index % COLORS.length];

export class Rig {
  // Raises an Error where the browser has no WebGL. `events`: select(id), move(id, place, isLast).
  constructor(canvas, events) {
    this.canvas = canvas;
    this.events = events;
    this.renderer = new WebGLRenderer({ canvas, antialias: true, alpha: true });
    this.scene = new Scene();
    this.eye = new PerspectiveCamera(40, 1, 0.05, 200);
    this.eye.up.set(0, 0, 1);
    this.eye.position.set(3.9, -8.2, 4.6);
    this.controls = new OrbitControls(this.eye, canvas);
    this.controls.enableDamping = false;
    this.controls.minDistance = 1.5;
    this.controls.maxDistance = 60;
    this.controls.addEventListener("change", () => this.redraw());
    this.scene.add(new AmbientLight("#ffffff", 2.2));
    const sun = new DirectionalLight("#ffffff", 1.6);
    sun.position.set(3, -4, 6);
    this.scene.add(sun);
    this.frusta = new Map();
    this.size = { width: 1, height: 1 };
    this.selected = null;
    this.model = null;
    this.frameTimes = [];
    this.addSurroundings();
    this.listen();
    new ResizeObserver(() => this.redraw()).observe(canvas);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", () => this.redraw());
  }

  addSurroundings() {
    const circle = (at) => new LineLoop(points(Array.from({ length: 96 }, (_, i) =>
      at(Math.cos(i * Math.PI / 48), Math.sin(i * Math.PI / 48)))), this.faint);
    this.faint = new LineBasicMaterial({ color: "#8a8f98", transparent: true, opacity: 0.55 });
    this.ball = new Group();
    this.ball.add(circle((x, y) => [x, y, 0]), circle((x, y) => [x, 0, y]),
      circle((x, y) => [0, x, y]));
    const floor = [];
    for (let i = -4; i <= 4; i++) floor.push([i, -4, -1], [i, 4, -1], [-4, i, -1], [4, i, -1]);
    const thin = new LineBasicMaterial({ color: "#8a8f98", transparent: true, opacity: 0.18 });
    this.scene.add(this.ball, new LineSegments(points(floor), thin));
    const [x, y, z] = FRONT;
    const arrow = new ArrowHelper(new Vector3(x, y, z), new Vector3(0, -1.1, -1), 0.8, "#8a8f98",
      0.2, 0.12);
    const word = label("front");
    word.position.set(0, -2.15, -1);
    this.scene.add(arrow, word);
  }

  // Show these cameras: [{camera, image, isHeld, isStale}].
  show(items, size, selected) {
    this.size = size;
    this.selected = selected;
    const present = new Set(items.map(({ camera }) => camera.id));
    for (const [id, frustum] of this.frusta) {
      if (!present.has(id)) {
        this.scene.remove(frustum.group);
        frustum.dispose();
        this.frusta.delete(id);
      }
    }
    items.forEach(({ camera, image, isHeld, isStale }, index) => {
      let frustum = this.frusta.get(camera.id);
      if (!frustum) {
        frustum = new Frustum(camera.id);
        this.frusta.set(camera.id, frustum);
        this.scene.add(frustum.group);
      }
      frustum.index = index;
      frustum.update(camera, size, colorOf(index), camera.id === selected, isHeld, isStale);
      frustum.setImage(image, () => this.redraw());
    });
    this.redraw();
  }

  async showModel(bytes) {
    const loaded = await new GLTFLoader().parseAsync(bytes, "");
    this.hideModel();
    this.model = loaded.scene;
    // GLB has y up, the world of cameras z.
    this.model.rotation.x = Math.PI / 2;
    this.scene.add(this.model);
    this.ball.visible = false;
    this.redraw();
  }

  hideModel() {
    if (!this.model) return;
    this.scene.remove(this.model);
    this.model.traverse((part) => {
      part.geometry?.dispose();
      part.material?.map?.dispose();
      part.material?.dispose();
    });
    this.model = null;
    this.ball.visible = true;
    this.redraw();
  }

  // Look at the object from where a camera is, with its angle of view.
  lookFrom(camera) {
    const pose = poseOf(camera);
    this.eye.position.set(...pose.slice(0, 3).map((row) => row[3]));
    const [, fy] = lensOf(camera, this.size);
    this.eye.fov = 2 * Math.atan(this.size.height / 2 / fy) * 180 / Math.PI * 1.25;
    this.controls.target.set(0, 0, 0);
    this.controls.update();
    this.redraw();
  }

  // Elevation, azimuth and radius of the person's own view.
  ownPlace() {
    return this.eye.position.toArray();
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      const began = performance.now();
      this.fit();
      this.renderer.render(this.scene, this.eye);
      this.frameTimes.push(performance.now() - began);
      if (this.frameTimes.length > 300) this.frameTimes.shift();
    });
  }

  fit() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    const ratio = Math.min(2, devicePixelRatio);
    const { canvas } = this;
    // A ring of cameras at the usual distance fits in at first, however narrow the canvas is.
    if (!this.wasFitted) this.eye.position.multiplyScalar(Math.max(1, 1.12 * height / width));
    this.wasFitted = true;
    if (canvas.width !== Math.floor(width * ratio) || canvas.height !== Math.floor(height * ratio)) {
      this.renderer.setPixelRatio(ratio);
      this.renderer.setSize(width, height, false);
    }
    this.eye.aspect = width / height;
    this.eye.updateProjectionMatrix();
  }

  ray(event) {
    const box = this.canvas.getBoundingClientRect();
    const at = new Vector2((event.clientX - box.left) / box.width * 2 - 1,
      1 - (event.clientY - box.top) / box.height * 2);
    const caster = new Raycaster();
    caster.setFromCamera(at, this.eye);
    return caster;
  }

  frustumAt(event) {
    const targets = [...this.frusta.values()].map((frustum) => frustum.target);
    const hit = this.ray(event).intersectObjects(targets, false)[0];
    return hit ? this.frusta.get(hit.object.userData.id) : null;
  }

  // The point of a sphere under the pointer: on the near or the far side, else at its outline.
  onSphere(event, radius, isFar) {
    const { ray } = this.ray(event);
    const sphere = new Sphere(new Vector3(), radius);
    const near = ray.intersectSphere(sphere, new Vector3());
    if (!near) return ray.closestPointToPoint(sphere.center, new Vector3()).setLength(radius);
    if (!isFar) return near;
    const middle = ray.closestPointToPoint(sphere.center, new Vector3());
    return middle.multiplyScalar(2).sub(near);
  }

  listen() {
    let dragged = null;
    this.canvas.addEventListener("pointerdown", (event) => {
      const frustum = this.frustumAt(event);
      if (!frustum) return;
      this.events.select(frustum.id);
      const towards = this.eye.position.clone().sub(frustum.center);
      const isFar = towards.dot(frustum.center) < 0;
      dragged = { frustum, isFar, radius: frustum.center.length(), moved: false };
      this.controls.enabled = false;
      this.canvas.setPointerCapture(event.pointerId);
    }, { capture: true });
    this.canvas.addEventListener("pointermove", (event) => {
      if (!dragged) {
        if (event.pointerType === "mouse") {
          this.canvas.style.cursor = this.frustumAt(event) ? "grab" : "";
        }
        return;
      }
      const point = this.onSphere(event, dragged.radius, dragged.isFar);
      dragged.moved = true;
      this.events.move(dragged.frustum.id, point.toArray(), false);
    });
    const end = () => {
      if (dragged?.moved) this.events.move(dragged.frustum.id, null, true);
      dragged = null;
      this.controls.enabled = true;
    };
    this.canvas.addEventListener("pointerup", end);
    this.canvas.addEventListener("pointercancel", end);
    this.canvas.addEventListener("wheel", (event) => {
      const frustum = this.frustumAt(event);
      if (!frustum) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      const point = frustum.center.clone().multiplyScalar(event.deltaY > 0 ? 1.04 : 1 / 1.04);
      this.events.move(frustum.id, point.toArray(), true);
    }, { capture: true, passive: false });
  }
}

class Frustum {
  constructor(id) {
    this.id = id;
    this.group = new Group();
    this.group.matrixAutoUpdate = false;
    this.lines = new LineSegments(new BufferGeometry(), new LineBasicMaterial());
    this.picture = new Mesh(new BufferGeometry(), new MeshBasicMaterial({ side: DoubleSide,
      transparent: true }));
    // What a pointer hits: the image's plane and the camera's sides.
    this.target = new Mesh(new BufferGeometry(), new MeshBasicMaterial({ visible: false,
      side: DoubleSide }));
    this.target.userData.id = id;
    this.group.add(this.lines, this.picture, this.target);
    this.center = new Vector3();
    this.texture = null;
    this.shown = null;
  }

  update(camera, size, color, isSelected, isHeld, isStale) {
    const pose = poseOf(camera);
    this.group.matrix.set(...pose.flat());
    this.group.matrixWorldNeedsUpdate = true;
    this.center.set(pose[0][3], pose[1][3], pose[2][3]);
    const [fx, fy, cx, cy] = lensOf(camera, size);
    const corner = (x, y) => [(x - cx) / fx * DEPTH, (y - cy) / fy * DEPTH, DEPTH];
    const corners = [[0, 0], [size.width, 0], [size.width, size.height], [0, size.height]]
      .map(([x, y]) => corner(x, y));
    const [a, b, c, d] = corners;
    const eye = [0, 0, 0];
    const top = [(a[0] + b[0]) / 2, a[1] - (c[1] - a[1]) * 0.14, DEPTH];
    const edges = [eye, a, eye, b, eye, c, eye, d, a, b, b, c, c, d, d, a, a, top, top, b];
    this.lines.geometry.dispose();
    this.lines.geometry = points(edges);
    this.lines.material.color = new Color(color);
    this.lines.material.opacity = isSelected ? 1 : 0.75;
    this.lines.material.transparent = !isSelected;
    const plane = points([a, b, c, a, c, d]);
    const uv = new Float32Array([0, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0]);
    plane.setAttribute("uv", new BufferAttribute(uv, 2));
    this.picture.geometry.dispose();
    this.picture.geometry = plane;
    this.picture.material.opacity = isStale ? 0.45 : 0.97;
    this.picture.visible = this.texture !== null;
    this.target.geometry.dispose();
    this.target.geometry = points([a, b, c, a, c, d, eye, a, b, eye, b, c, eye, c, d, eye, d, a]);
    this.lines.scale.setScalar(1);
    this.isHeld = isHeld;
  }

  setImage(address, redraw) {
    if (address === this.shown) return;
    this.shown = address;
    if (!address) {
      this.texture?.dispose();
      this.texture = null;
      this.picture.visible = false;
      return;
    }
    const image = new Image();
    image.onload = () => {
      if (this.shown !== address) return;
      const texture = new Texture(image);
      texture.colorSpace = SRGBColorSpace;
      texture.needsUpdate = true;
      this.texture?.dispose();
      this.texture = texture;
      this.picture.material.map = texture;
      this.picture.material.needsUpdate = true;
      this.picture.visible = true;
      redraw();
    };
    image.src = address;
  }

  dispose() {
    this.texture?.dispose();
    for (const part of [this.lines, this.picture, this.target]) {
      part.geometry.dispose();
      part.material.dispose();
    }
  }
}

function points(list) {
  const geometry = new BufferGeometry();
  geometry.setAttribute("position", new BufferAttribute(new Float32Array(list.flat()), 3));
  return geometry;
}

function label(text) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: 128, height: 48 });
  const context = canvas.getContext("2d");
  context.font = "30px system-ui, sans-serif";
  context.textAlign = "center";
  context.fillStyle = "#8a8f98";
  context.fillText(text, 64, 34);
  const sprite = new Sprite(new SpriteMaterial({ map: new CanvasTexture(canvas) }));
  sprite.scale.set(0.8, 0.3, 1);
  return sprite;
}
