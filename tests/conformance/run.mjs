// Runs the conformance tests: installs the real clients, runs every suite, and prints a line for each and the totals.
//
//   KVASAR_BIN=target/debug/kvasar node tests/conformance/run.mjs [part of a file's name ...]

import { readdirSync } from "node:fs";
import { basename, join } from "node:path";
import { run } from "node:test";

import { install } from "./lib/install.mjs";

const FILES_AT_ONCE = 3;
const TEST_TIMEOUT_MS = 180_000;

const started = Date.now();
const hasGo = await install((what) => console.log(`installing ${what}`));
const wanted = process.argv.slice(2);
const files = readdirSync(import.meta.dirname)
  .filter((name) => name.endsWith(".test.mjs") && (hasGo || !name.startsWith("go.")))
  .filter((name) => wanted.length === 0 || wanted.some((part) => name.includes(part)))
  .map((name) => join(import.meta.dirname, name));
if (files.length === 0) throw new Error(`no suite's name contains ${wanted.join(" or ")}`);

/** Counts by file and name of the outermost suite, in order of the first result. */
const suites = new Map();
const failures = [];
const open = new Map();

function suiteOf({ file, name, nesting }) {
  const key = nesting === 0 ? name : (open.get(file) ?? basename(file));
  if (!suites.has(key)) suites.set(key, { passed: 0, failed: 0 });
  return suites.get(key);
}

function record(data, passed) {
  const isSuite = data.details.type === "suite";
  const isFile = data.nesting === 0 && data.name === data.file;
  const cause = data.details.error?.cause ?? data.details.error;
  const onlyBelow = data.details.error?.failureType === "subtestsFailed";
  if (passed && (isSuite || isFile)) return;
  if (!passed && onlyBelow) return;
  const counts = suiteOf(data);
  if (passed) counts.passed += 1;
  else counts.failed += 1;
  if (!passed) failures.push(`${basename(data.file)}: ${data.name}\n${cause?.stack ?? cause?.message ?? cause}`);
}

const stream = run({ files, concurrency: FILES_AT_ONCE, timeout: TEST_TIMEOUT_MS });
stream.on("test:start", ({ file, name, nesting }) => nesting === 0 && open.set(file, name));
stream.on("test:pass", (data) => (data.skip === undefined ? record(data, true) : record({ ...data, details: { error: new Error("skipped") } }, false)));
stream.on("test:fail", (data) => record(data, false));
stream.on("test:stderr", ({ message }) => process.stderr.write(message));
stream.resume();
await new Promise((resolve) => stream.on("end", resolve));

let passed = 0;
let failed = 0;
for (const [name, counts] of suites) {
  console.log(`${name}: ${counts.passed} passed, ${counts.failed} failed`);
  passed += counts.passed;
  failed += counts.failed;
}
for (const failure of failures) console.log(`\nFAILED ${failure}`);
if (!hasGo) console.log("\nGO IS NOT INSTALLED: the clients cloudflare-go v0 and v7 were NOT tested");
console.log(`\nconformance, ${Math.round((Date.now() - started) / 1000)} s: ${passed} passed, ${failed} failed`);
process.exitCode = failed > 0 || passed === 0 ? 1 : 0;
