// The ray of a pixel of one view, as a segment in the image of another.
import { norm, product, transposed } from "./cameras.js";

export function pixelRay(view, x, y) {
  const [fx, fy, cx, cy] = view.lens;
  return product(view.rotation, [(x - cx) / fx, (y - cy) / fy, 1]);
}

// The part of a ray before both cameras: an anchor, a unit direction, and the range along it, cut
// at `margin` pixels round the image. Null where nothing of it can be seen.
export function raySegment(source, x, y, target, { width, height }, margin) {
  const back = transposed(target.rotation);
  const [fx, fy, cx, cy] = target.lens;
  const image = (v) => [fx * v[0] + cx * v[2], fy * v[1] + cy * v[2], v[2]];
  const atCamera = image(product(back, source.center.map((c, i) => c - target.center[i])));
  const perDepth = image(product(back, pixelRay(source, x, y)));
  const scale = norm(atCamera) + norm(perDepth);
  const clean = (v) => v.map((c) => (Math.abs(c) < 1e-9 * scale ? 0 : c));
  const unitOf = (v) => v.map((c) => c / Math.max(norm(v), 1e-300));
  let start = clean(atCamera);
  const end = unitOf(clean(perDepth));
  start = start.every((c) => c === 0) ? end : unitOf(start);
  if (start[2] <= 0 && end[2] <= 0) return null;
  const place = (v) => [v[0] / v[2], v[1] / v[2]];
  const anchor = start[2] > 0 ? place(start) : place(end);
  const travel = [0, 1].map((i) => end[i] * start[2] - start[i] * end[2]);
  const length = norm(travel);
  if (length < 1e-12) return { anchor, unit: [1, 0], from: 0, to: 0 };
  const unit = travel.map((c) => c / length);
  const along = (v) => {
    const at = place(v);
    return (at[0] - anchor[0]) * unit[0] + (at[1] - anchor[1]) * unit[1];
  };
  let from = start[2] > 0 ? 0 : -Infinity;
  let to = end[2] > 0 ? along(end) : Infinity;
  for (const [axis, size] of [[0, width], [1, height]]) {
    if (unit[axis] === 0) {
      if (anchor[axis] < -margin || anchor[axis] > size + margin) return null;
      continue;
    }
    const ends = [(-margin - anchor[axis]) / unit[axis], (size + margin - anchor[axis]) / unit[axis]];
    from = Math.max(from, Math.min(...ends));
    to = Math.min(to, Math.max(...ends));
  }
  return from <= to ? { anchor, unit, from, to } : null;
}

// A band of `thickness` pixels along a segment.
export function drawSegment(context, segment, thickness, color, alpha) {
  const point = (t) => segment.anchor.map((c, i) => c + t * segment.unit[i]);
  context.globalAlpha = alpha;
  context.strokeStyle = context.fillStyle = color;
  context.beginPath();
  if (segment.to - segment.from < 1e-6) {
    context.arc(...point(segment.from), thickness / 2, 0, 2 * Math.PI);
    context.fill();
    return;
  }
  context.lineWidth = thickness;
  context.lineCap = "round";
  context.moveTo(...point(segment.from));
  context.lineTo(...point(segment.to));
  context.stroke();
}
