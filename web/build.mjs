// Copies what a browser needs of LiteRT.js to web/litert/, which the server gives below /litert/.
// Browsers resolve no names of packages, so the one that is imported becomes a path.
import { copyFile, mkdir, readFile, rm, writeFile } from "node:fs/promises";

const packages = new URL("node_modules/@litertjs/", import.meta.url);
const litert = new URL("litert/", import.meta.url);
// With and without relaxed SIMD; the ones with threads and promises are not used.
const variants = ["litert_wasm_internal", "litert_wasm_compat_internal"];

await rm(litert, { recursive: true, force: true });
await mkdir(litert);
const core = await readFile(new URL("core/dist/index.js", packages), "utf8");
const imported = 'from "@litertjs/wasm-utils"';
if (core.split(imported).length !== 2) throw new Error(`expected one import ${imported}`);
const text = core.replace(imported, 'from "./wasm_utils.js"').replace(/^\/\/# sourceMapping.*$/m, "");
await writeFile(new URL("index.js", litert), text);
const utils = await readFile(new URL("wasm-utils/dist/index.js", packages), "utf8");
await writeFile(new URL("wasm_utils.js", litert), utils.replace(/^\/\/# sourceMapping.*$/m, ""));
for (const variant of variants) {
  for (const suffix of ["js", "wasm"]) {
    const name = `${variant}.${suffix}`;
    await copyFile(new URL(`core/wasm/${name}`, packages), new URL(name, litert));
  }
}
