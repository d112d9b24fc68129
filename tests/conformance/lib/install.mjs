// Installs the real clients from their lock files. What is there already, from the same lock file, is left alone.

import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";

import { run } from "./process.mjs";

const here = dirname(import.meta.dirname);
const INSTALL_TIMEOUT_MS = 900_000;

/** Where clients that are compiled, or have an environment of their own, are kept. */
export const clientsFolder = join(process.env.CARGO_TARGET_DIR ?? join(here, "..", "..", "target"), "conformance");

export const pythonVersions = ["4.3.1", "5.9.0"];
export const python = (version) => join(clientsFolder, `python-${version}`, "bin", "python");
export const goVersions = ["v0", "v7"];
export const goClient = (version) => join(clientsFolder, `go-${version}`);
export const rustClient = join(clientsFolder, "rust", "debug", "rust-client");

/** The `go` program, on PATH or where its installer puts it, or undefined. */
export function findGo() {
  const folders = [...(process.env.PATH ?? "").split(delimiter), "/usr/local/go/bin", "/usr/lib/go/bin"];
  return folders.map((folder) => join(folder, "go")).find((file) => existsSync(file));
}

/** Installs everything; `say` is told what is being waited for. Resolves to whether Go's clients are there. */
export async function install(say) {
  mkdirSync(clientsFolder, { recursive: true });
  await once(say, "npm's clients", join(here, "node_modules", ".installed"), ["package-lock.json"], () => must("npm", ["ci", "--no-audit", "--no-fund"]));
  for (const version of pythonVersions) await installPython(say, version);
  await buildRust(say);
  const go = findGo();
  if (go === undefined) return false;
  for (const version of goVersions) await buildGo(say, go, version);
  return true;
}

async function installPython(say, version) {
  const folder = join(clientsFolder, `python-${version}`);
  const requirements = join("python", `requirements-${version}.txt`);
  await once(say, `PyPI's cloudflare ${version}`, join(folder, ".installed"), [requirements], async () => {
    rmSync(folder, { recursive: true, force: true });
    await must("python3", ["-m", "venv", folder]);
    await must(python(version), ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r", requirements]);
  });
}

async function buildRust(say) {
  say("the program for the crate cloudflare");
  const manifest = join(here, "rust-client", "Cargo.toml");
  await must("cargo", ["build", "--quiet", "--locked", "--manifest-path", manifest, "--target-dir", join(clientsFolder, "rust")]);
}

async function buildGo(say, go, version) {
  say(`the program for cloudflare-go ${version}`);
  const env = { ...process.env, GOFLAGS: "-mod=readonly", GOTOOLCHAIN: "local", CGO_ENABLED: "0" };
  await must(go, ["build", "-o", goClient(version), "."], { cwd: join(here, "go", version), env });
}

/** Does `work` unless it was done before with the same content of these files. */
async function once(say, what, stamp, files, work) {
  const hash = createHash("sha256");
  for (const file of files) hash.update(readFileSync(join(here, file)));
  const wanted = hash.digest("hex");
  if (existsSync(stamp) && readFileSync(stamp, "utf8") === wanted) return;
  say(what);
  await work();
  writeFileSync(stamp, wanted);
}

async function must(file, args, options = {}) {
  const { code, stdout, stderr } = await run(file, args, { cwd: here, timeoutMs: INSTALL_TIMEOUT_MS, ...options });
  if (code !== 0) throw new Error(`${file} ${args.join(" ")} ended with ${code}:\n${stdout}\n${stderr}`);
}
