// The Python SDK, in both versions that are in use, through every method that touches KV.

import { join } from "node:path";

import { python, pythonVersions } from "./lib/install.mjs";
import { programSuites } from "./lib/program.mjs";

const program = join(import.meta.dirname, "python", "kv.py");

await programSuites(pythonVersions.map((version) => ({ title: `PyPI cloudflare ${version}`, file: python(version), args: [program, version] })));
