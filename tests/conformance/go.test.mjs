// Go's SDKs, the old one and the generated one, through every method that touches KV.

import { readFileSync } from "node:fs";
import { join } from "node:path";

import { goClient, goVersions } from "./lib/install.mjs";
import { programSuites } from "./lib/program.mjs";

function installedVersion(major) {
  const mod = readFileSync(join(import.meta.dirname, "go", major, "go.mod"), "utf8");
  return mod.match(/cloudflare-go\S* (v\S+)/)[1];
}

await programSuites(goVersions.map((major) => ({ title: `Go cloudflare-go ${installedVersion(major)}`, file: goClient(major) })));
