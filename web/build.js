// Bundles the page of `spad app` into src/spad/app/static, and the viewer of the documentation's
// models into docs/models; or both into the folder that is named.
import { build } from "esbuild";
import { copyFileSync, mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));

async function bundle(source, folder, name) {
  const output = process.argv[2] ?? join(here, "..", folder);
  mkdirSync(output, { recursive: true });
  await build({
    absWorkingDir: here,
    entryPoints: [source],
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    legalComments: "eof",
    outfile: join(output, name),
  });
  copyFileSync(join(here, "node_modules/three/LICENSE"), join(output, "three-license.txt"));
}

await bundle("src/main.js", "src/spad/app/static", "app.js");
await bundle("src/gallery.js", "docs/models", "gallery.js");
