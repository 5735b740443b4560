// Cameras of the page: on a sphere about the origin, or with any pose, as spad.Cameras has them.
// World: right-handed, z up. Camera axes: x right, y down, z forward. See docs/conventions.md.

export const degrees = (radians) => radians * 180 / Math.PI;
export const radians = (angle) => angle * Math.PI / 180;
export const product = (m, v) => m.map((row) => row[0] * v[0] + row[1] * v[1] + row[2] * v[2]);
export const transposed = (m) => m[0].map((_, column) => m.map((row) => row[column]));
export const norm = (v) => Math.hypot(...v);

let lastId = 0;

// A camera that looks at the origin. `pose` and `lens` (fx, fy, cx, cy over the image's width or
// height) stand for what an orbit cannot say; they are null until cameras are imported.
export function orbitCamera(elevation, azimuth, radius, fov) {
  return { id: ++lastId, elevation, azimuth, radius, fov, pose: null, lens: null };
}

export const copyOf = (camera) => ({ ...structuredClone(camera), id: ++lastId });

// Rows of the rigid 4x4 matrix that takes camera coordinates to the world's.
export function poseOf(camera) {
  if (camera.pose) return camera.pose;
  const [sinE, cosE] = [Math.sin(radians(camera.elevation)), Math.cos(radians(camera.elevation))];
  const [sinA, cosA] = [Math.sin(radians(camera.azimuth)), Math.cos(radians(camera.azimuth))];
  const back = [cosE * cosA, cosE * sinA, sinE];
  const right = [-sinA, cosA, 0];
  const down = [sinE * cosA, sinE * sinA, -cosE];
  return [0, 1, 2].map((i) => [right[i], down[i], -back[i], camera.radius * back[i]])
    .concat([[0, 0, 0, 1]]);
}

// Focal lengths and principal point in pixels of an image of this size.
export function lensOf(camera, { width, height }) {
  if (camera.lens) {
    const [fx, fy, cx, cy] = camera.lens;
    return [fx * width, fy * height, cx * width, cy * height];
  }
  const focal = width / 2 / Math.tan(radians(camera.fov) / 2);
  return [focal, focal, width / 2, height / 2];
}

// The camera as epipolar geometry wants it.
export function viewOf(camera, size) {
  const pose = poseOf(camera);
  return {
    rotation: pose.slice(0, 3).map((row) => row.slice(0, 3)),
    center: pose.slice(0, 3).map((row) => row[3]),
    lens: lensOf(camera, size),
  };
}

// What the server takes: spad.app.messages.CameraFields.
export function fieldsOf(cameras, size) {
  return {
    height: size.height,
    width: size.width,
    world_from_cam: cameras.map(poseOf),
    intrinsics: cameras.map((camera) => {
      const [fx, fy, cx, cy] = lensOf(camera, size);
      return [[fx, 0, cx], [0, fy, cy], [0, 0, 1]];
    }),
  };
}

// Cameras of the server's fields. Poses stay as they are until the camera is moved.
export function camerasOf({ width, height, world_from_cam: poses, intrinsics }) {
  return poses.map((pose, view) => {
    const [[fx, , cx], [, fy, cy]] = intrinsics[view];
    const camera = orbitCamera(0, 0, 1, degrees(2 * Math.atan(width / 2 / fx)));
    camera.pose = pose;
    camera.lens = [fx / width, fy / height, cx / width, cy / height];
    return { ...camera, ...placeOf(pose.slice(0, 3).map((row) => row[3])) };
  });
}

// Elevation, azimuth and radius of a point.
export function placeOf(point) {
  const radius = norm(point);
  const elevation = degrees(Math.atan2(point[2], Math.hypot(point[0], point[1])));
  return { elevation, azimuth: degrees(Math.atan2(point[1], point[0])), radius };
}

// Put a camera somewhere on a sphere; from then on it looks at the origin.
export function place(camera, values) {
  Object.assign(camera, values);
  camera.pose = null;
  camera.elevation = Math.max(-90, Math.min(90, camera.elevation));
  camera.azimuth = (((camera.azimuth + 180) % 360) + 360) % 360 - 180;
  camera.radius = Math.max(0.5, Math.min(20, camera.radius));
  camera.fov = Math.max(5, Math.min(120, camera.fov));
  if ("fov" in values) camera.lens = null;
}
