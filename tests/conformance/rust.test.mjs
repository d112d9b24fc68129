// The crate `cloudflare`, through every endpoint that touches KV.

import { readFileSync } from "node:fs";
import { join } from "node:path";

import { rustClient } from "./lib/install.mjs";
import { programSuites } from "./lib/program.mjs";

const lock = readFileSync(join(import.meta.dirname, "rust-client", "Cargo.lock"), "utf8");
const version = lock.match(/name = "cloudflare"\nversion = "([^"]+)"/)[1];

await programSuites([{ title: `crate cloudflare ${version}`, file: rustClient }]);
