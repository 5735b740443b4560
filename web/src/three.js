// What both pages use of three.js, bundled once.
export {
  AmbientLight, ArrowHelper, Box3, BufferAttribute, BufferGeometry, CanvasTexture, Color,
  DirectionalLight, DoubleSide, Group, LineBasicMaterial, LineLoop, LineSegments, Mesh,
  MeshBasicMaterial, PerspectiveCamera, Raycaster, SRGBColorSpace, Scene, Sphere, Sprite,
  SpriteMaterial, Texture, Vector2, Vector3, WebGLRenderer,
} from "three";
export { OrbitControls } from "three/addons/controls/OrbitControls.js";
export { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";
