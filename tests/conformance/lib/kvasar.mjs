// Kvasar processes under test: started on ports that the system picks, on a data folder of their own, and ended by their id.

import { readFileSync, writeFileSync, existsSync } from "node:fs";
import { join } from "node:path";

import { run, start, stop, until } from "./process.mjs";
import { temporaryFolder } from "./temporary.mjs";

export const KVASAR = process.env.KVASAR_BIN ?? fail("KVASAR_BIN must name the kvasar program to test; ./test sets it");

function fail(message) {
  throw new Error(message);
}

/** A whole world in one process, with a near location `home` and a far one `away`. */
export async function startDev(...extra) {
  const folder = temporaryFolder("dev");
  const locations = ["--location", "home=127.0.0.1:0", "--location", "away=127.0.0.1:0,region=far,delay=80ms"];
  const args = ["dev", "--data", join(folder, "data"), "--rest", "127.0.0.1:0", ...locations, "--quiet", ...extra];
  const server = await startServer(args, folder);
  const bindings = Object.fromEntries(server.ready.locations.map((location) => [location.name, location.binding]));
  return Object.assign(server, { bindings, account: server.ready.account_id, token: server.ready.token, namespace: server.ready.namespace.id });
}

/** What one configuration file says. `DATA` in it stands for a fresh folder. */
export async function startServe(toml) {
  const folder = temporaryFolder("serve");
  const config = join(folder, "kvasar.toml");
  writeFileSync(config, toml.replaceAll("DATA", JSON.stringify(join(folder, "data"))));
  const server = await startServer(["serve", "--config", config], folder);
  const [account] = server.ready.accounts ?? [];
  const bindings = Object.fromEntries((server.ready.tiers ?? []).map((tier) => [tier.name, tier.listen]));
  if (server.ready.origin?.listen) bindings.origin = server.ready.origin.listen;
  return Object.assign(server, { bindings, account: account?.account_id, token: account?.token });
}

/** An origin alone: no tier, so nothing is ever cached. */
export function startOrigin(limits = "") {
  return startServe(`
[server]
location = "alone"
admin = "127.0.0.1:0"
[cluster]
secret = "a-secret-of-the-conformance-tests-alone"
[origin]
data = DATA
listen = "127.0.0.1:0"
[[account]]
name = "default"
[rest]
listen = "127.0.0.1:0"
on = "origin"
${limits}
`);
}

async function startServer(args, folder) {
  const file = join(folder, "ready.json");
  const child = start(KVASAR, [...args, "--ready-file", file]);
  const ready = await until(child, `starting kvasar ${args.join(" ")}`, () => {
    return existsSync(file) ? JSON.parse(readFileSync(file, "utf8")) : undefined;
  });
  return { ready, child, folder, rest: ready.rest, stop: () => stopCleanly(child) };
}

async function stopCleanly(child) {
  const end = await stop(child);
  if (end !== 0) throw new Error(`kvasar ended with ${end} instead of 0 after SIGTERM; it printed:\n${child.output}`);
}

/** One of kvasar's commands, run to its end. */
export function kvasar(server, ...args) {
  return run(KVASAR, args, { env: { ...process.env, ...credentials(server) } });
}

/** The environment that points wrangler, the SDKs and kvasar's own commands at a server. */
export function credentials(server) {
  return { CLOUDFLARE_API_BASE_URL: server.rest, CLOUDFLARE_ACCOUNT_ID: server.account, CLOUDFLARE_API_TOKEN: server.token };
}

/** A REST request under `/client/v4`; resolves to status, headers, bytes and, where it is JSON, the body. */
export async function rest(server, method, path, { body, headers = {}, token = server.token, signal } = {}) {
  const response = await fetch(`${server.rest}${path}`, { method, body, signal, headers: { Authorization: `Bearer ${token}`, ...headers } });
  const bytes = Buffer.from(await response.arrayBuffer());
  const json = response.headers.get("content-type")?.startsWith("application/json") ? JSON.parse(bytes) : undefined;
  return { status: response.status, headers: response.headers, bytes, json };
}

/** The path of what belongs to KV in a server's account. */
export function kvPath(server, rest = "") {
  return `/accounts/${server.account}/storage/kv/namespaces${rest}`;
}

export async function createNamespace(server, title) {
  const { status, json } = await rest(server, "POST", kvPath(server), { body: JSON.stringify({ title }) });
  if (status !== 200) throw new Error(`creating namespace ${title}: ${status} ${JSON.stringify(json)}`);
  return json.result.id;
}

/** Makes a token through kvasar's own command; resolves to its secret. `options` are the command's. */
export async function createToken(server, name, ...options) {
  const { code, stdout, stderr } = await kvasar(server, "token", "create", name, ...options);
  const secret = stdout.match(/[A-Za-z0-9_-]{40,}/)?.[0];
  if (code !== 0 || secret === undefined) throw new Error(`kvasar token create ${name}: ${code}\n${stdout}\n${stderr}`);
  return secret;
}
