// The reference: miniflare's KV, which is the product's own simulator, under the same workerd as everything else.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname } from "node:path";

import { workerdProgram } from "./workerd.mjs";

const require = createRequire(import.meta.url);

export const referenceVersion = require("miniflare/package.json").version;

export async function startReference({ modules }) {
  process.env.MINIFLARE_WORKERD_PATH = workerdProgram;
  const { Miniflare, Log, LogLevel } = await import("miniflare");
  const root = dirname(modules[0]);
  const miniflare = new Miniflare({
    modules: modules.map((file) => ({ type: "ESModule", path: file.slice(root.length + 1), contents: readFileSync(file, "utf8") })),
    modulesRoot: "/",
    kvNamespaces: { KV: basename(root) },
    compatibilityDate: "2026-04-01",
    log: new Log(LogLevel.ERROR),
  });
  const url = await miniflare.ready;
  return { url: url.origin, stop: () => miniflare.dispose() };
}
