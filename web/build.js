// Bundles the page of `spad app` into src/spad/app/static, or into the folder that is named.
import { build } from "esbuild";
import { copyFileSync, mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const output = process.argv[2] ?? join(here, "../src/spad/app/static");
mkdirSync(output, { recursive: true });
await build({
  absWorkingDir: here,
  entryPoints: ["src/main.js"],
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "eof",
  outfile: join(output, "app.js"),
});
copyFileSync(join(here, "node_modules/three/LICENSE"), join(output, "three-license.txt"));
