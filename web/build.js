// Bundles the page of `spad app` and the viewer of the documentation's models, and three.js, which
// both import, into src/spad/app/static and docs/models; or all into the folder that is named.
import { build } from "esbuild";
import { copyFileSync, mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const page = process.argv[2] ?? join(here, "../src/spad/app/static");
const viewer = process.argv[2] ?? join(here, "../docs/models");

async function bundle(source, folder, name, external = []) {
  mkdirSync(folder, { recursive: true });
  await build({
    absWorkingDir: here,
    entryPoints: [source],
    bundle: true,
    external,
    minify: true,
    format: "esm",
    target: "es2022",
    legalComments: "eof",
    outfile: join(folder, name),
  });
}

await bundle("src/three.js", page, "three.js");
await bundle("src/main.js", page, "app.js", ["./three.js"]);
await bundle("src/gallery.js", viewer, "gallery.js", ["./three.js"]);
copyFileSync(join(here, "node_modules/three/LICENSE"), join(page, "three-license.txt"));
