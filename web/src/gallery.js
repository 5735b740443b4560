// Models on a page of the documentation: a link to a GLB file, around its image, becomes a view that
// turns by itself and can be turned by hand.
import {
  AmbientLight, Box3, DirectionalLight, GLTFLoader, OrbitControls, PerspectiveCamera, Scene,
  Sphere, WebGLRenderer,
} from "./three.js";

// Draws the model at `address` on `canvas`. Raises an Error if there is no WebGL, or no such model.
export async function showModel(canvas, address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address}: ${response.status}`);
  const { scene: model } = await new GLTFLoader().parseAsync(await response.arrayBuffer(), "");
  const renderer = new WebGLRenderer({ canvas, antialias: true, alpha: true });
  renderer.setPixelRatio(devicePixelRatio);
  const scene = new Scene();
  const sun = new DirectionalLight("#ffffff", 1.6);
  sun.position.set(3, 6, 4);
  scene.add(model, new AmbientLight("#ffffff", 2.2), sun);
  const ball = new Box3().setFromObject(model).getBoundingSphere(new Sphere());
  const eye = new PerspectiveCamera(30, 1, ball.radius / 50, ball.radius * 50);
  eye.position.copy(ball.center);
  eye.position.x += 1.9 * ball.radius;
  eye.position.y += 1.4 * ball.radius;
  eye.position.z += 3.2 * ball.radius;
  const controls = new OrbitControls(eye, canvas);
  controls.target.copy(ball.center);
  controls.enableZoom = false; // the page scrolls
  controls.autoRotate = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  controls.addEventListener("start", () => (controls.autoRotate = false));
  let isSeen = true;
  new IntersectionObserver(([entry]) => (isSeen = entry.isIntersecting)).observe(canvas);
  renderer.setAnimationLoop(() => {
    if (!isSeen || !canvas.isConnected) return;
    const { clientWidth: width, clientHeight: height } = canvas;
    renderer.setSize(width, height, false);
    eye.aspect = width / height;
    eye.updateProjectionMatrix();
    controls.update();
    renderer.render(scene, eye);
  });
}

// A click on the image of a model shows the model in its place; the link stays for those who want
// the file, and where there is no WebGL.
document.addEventListener("click", async (event) => {
  const link = event.target.closest?.('a[href$=".glb"]');
  const image = link?.querySelector("img");
  if (!image || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const canvas = document.createElement("canvas");
  const { width, height } = image.getBoundingClientRect();
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px`, cursor: "grab" });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${image.alt}, turning`);
  try {
    await showModel(canvas, link.href);
    link.replaceWith(canvas);
  } catch {
    location.href = link.href;
  }
});
