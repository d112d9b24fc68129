// wrangler, the newest that runs on the oldest Node we support, through every command that touches KV, told only by its environment where
// to go.

import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdirSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import { createNamespace, credentials, kvPath, rest, startDev } from "./lib/kvasar.mjs";
import { run } from "./lib/process.mjs";
import { temporaryFolder } from "./lib/temporary.mjs";

const require = createRequire(import.meta.url);
const { version } = require("wrangler/package.json");
const program = join(import.meta.dirname, "node_modules", "wrangler", "bin", "wrangler.js");

const COMMANDS_AT_ONCE = 2;

describe(`wrangler ${version}`, { concurrency: COMMANDS_AT_ONCE }, () => {
  let server;
  let namespace;
  const folder = temporaryFolder("wrangler");

  before(async () => {
    server = await startDev();
    namespace = await createNamespace(server, "wrangler");
  });
  after(() => server.stop());

  /** Runs a command as in a terminal without a person. */
  function wrangler(args, { env = {}, input, cwd = folder } = {}) {
    const quiet = { CI: "1", WRANGLER_SEND_METRICS: "false", WRANGLER_HIDE_BANNER: "true", NO_COLOR: "1", NODE_NO_WARNINGS: "1" };
    const home = { HOME: folder, XDG_CONFIG_HOME: folder, WRANGLER_CACHE_DIR: join(folder, "cache"), WRANGLER_LOG_PATH: folder };
    const bare = { PATH: process.env.PATH };
    return run(process.execPath, [program, ...args], { env: { ...bare, ...quiet, ...home, ...credentials(server), ...env }, input, cwd });
  }

  async function succeed(args, options) {
    const result = await wrangler(args, options);
    assert.equal(result.code, 0, `wrangler ${args.join(" ")}\n${result.stdout}\n${result.stderr}`);
    return result;
  }

  async function fail(args, options) {
    const result = await wrangler(args, options);
    assert.notEqual(result.code, 0, `wrangler ${args.join(" ")} did not fail\n${result.stdout}`);
    return `${result.stdout}\n${result.stderr}`;
  }

  const key = (...args) => ["kv", "key", ...args, "--namespace-id", namespace, "--remote"];
  const bulk = (...args) => ["kv", "bulk", ...args, "--namespace-id", namespace, "--remote"];
  const values = (name) => kvPath(server, `/${namespace}/values/${encodeURIComponent(name)}`);

  function file(name, content) {
    const path = join(folder, name);
    writeFileSync(path, content);
    return path;
  }

  test("namespaces are created, listed, renamed and deleted", async () => {
    const created = await succeed(["kv", "namespace", "create", "wrangler one"]);
    const id = created.stdout.match(/[0-9a-f]{32}/)[0];
    const listed = JSON.parse((await succeed(["kv", "namespace", "list"])).stdout);
    assert.equal(listed.find((found) => found.id === id).title, "wrangler one");
    await succeed(["kv", "namespace", "rename", "wrangler one", "--new-name", "wrangler two"]);
    assert.equal((await rest(server, "GET", kvPath(server, `/${id}`))).json.result.title, "wrangler two");
    await succeed(["kv", "namespace", "delete", "--namespace-id", id]);
    assert.equal((await rest(server, "GET", kvPath(server, `/${id}`))).status, 404);
  });

  test("a namespace is created for an environment and for previews, and deleted by its name", async () => {
    await succeed(["kv", "namespace", "create", "shop", "--env", "staging"]);
    await succeed(["kv", "namespace", "create", "shop", "--preview"]);
    const titles = async () => (await rest(server, "GET", kvPath(server, "?per_page=1000"))).json.result.map((found) => found.title);
    const made = (await titles()).filter((title) => title.includes("shop"));
    assert.equal(made.length, 2, made.join());
    assert.ok(made.some((title) => title.startsWith("staging-")), made.join());
    assert.ok(made.some((title) => title.endsWith("_preview")), made.join());
    await succeed(["kv", "namespace", "delete", made[0], "-y"]);
    assert.deepEqual((await titles()).filter((title) => title.includes("shop")), made.slice(1));
  });

  test("a title that is taken gets wrangler's own explanation", async () => {
    assert.match(await fail(["kv", "namespace", "create", "wrangler"]), /already exists/);
  });

  test("text is put, read and deleted", async () => {
    await succeed(key("put", "text", "a value: é ☃"));
    assert.equal((await succeed(key("get", "text", "--text"))).stdout.trimEnd(), "a value: é ☃");
    assert.deepEqual((await succeed(key("get", "text"))).bytes, Buffer.from("a value: é ☃"));
    await succeed(key("delete", "text"));
    assert.equal((await rest(server, "GET", values("text"))).status, 404);
  });

  test("a file's bytes are put and read back as they are", async () => {
    const bytes = Buffer.from(Array.from({ length: 100_000 }, (_, index) => (index * 7) % 256));
    await succeed(key("put", "file", "--path", file("bytes", bytes)));
    assert.deepEqual((await succeed(key("get", "file"))).bytes, bytes);
  });

  test("metadata is put with text and with a file", async () => {
    await succeed(key("put", "metadata/text", "v", "--metadata", '{"a":["é",null]}'));
    await succeed(key("put", "metadata/file", "--path", file("small", "from a file"), "--metadata", '{"file":true}'));
    const listed = JSON.parse((await succeed(key("list", "--prefix", "metadata/"))).stdout);
    assert.deepEqual(listed, [
      { name: "metadata/file", metadata: { file: true } },
      { name: "metadata/text", metadata: { a: ["é", null] } },
    ]);
    assert.equal((await rest(server, "GET", values("metadata/file"))).bytes.toString(), "from a file");
  });

  test("expirations are put and listed", async () => {
    await succeed(key("put", "expires/at", "v", "--expiration", "4000000000"));
    await succeed(key("put", "expires/ttl", "v", "--ttl", "600"));
    const listed = JSON.parse((await succeed(key("list", "--prefix", "expires/"))).stdout);
    assert.equal(listed[0].expiration, 4_000_000_000);
    assert.ok(Math.abs(listed[1].expiration - Date.now() / 1000 - 600) < 60);
    assert.match(await fail(key("put", "expires/soon", "v", "--ttl", "59")), /Expiration TTL must be at least 60/);
  });

  test("odd keys are themselves", async () => {
    const name = "odd/a b+c%2F?x=1#é&😀";
    await succeed(key("put", name, "odd"));
    assert.equal((await succeed(key("get", name, "--text"))).stdout.trimEnd(), "odd");
    assert.deepEqual(JSON.parse((await succeed(key("list", "--prefix", "odd/a b+c%2F?"))).stdout), [{ name }]);
    await succeed(key("delete", name));
    assert.deepEqual(JSON.parse((await succeed(key("list", "--prefix", "odd/"))).stdout), []);
  });

  test("2,500 pairs are put, listed over pages, read and deleted in bulk", async () => {
    const pairs = Array.from({ length: 2500 }, (_, index) => ({ key: `bulk/${String(index).padStart(4, "0")}`, value: `${index}` }));
    pairs[0] = { ...pairs[0], metadata: { first: true }, expiration_ttl: 600 };
    pairs[1] = { ...pairs[1], value: Buffer.from([0, 255, 1]).toString("base64"), base64: true };
    await succeed(bulk("put", file("pairs.json", JSON.stringify(pairs))));
    assert.deepEqual([...(await rest(server, "GET", values("bulk/0001"))).bytes], [0, 255, 1]);
    const listed = JSON.parse((await succeed(key("list", "--prefix", "bulk/"))).stdout);
    assert.deepEqual(listed.map((found) => found.name), pairs.map((pair) => pair.key));
    assert.deepEqual(listed[0].metadata, { first: true });
    const wanted = file("keys.json", JSON.stringify(["bulk/0002", "bulk/none"]));
    const { stdout } = await succeed(bulk("get", wanted));
    assert.deepEqual(JSON.parse(stdout.slice(stdout.indexOf("{"), stdout.lastIndexOf("}") + 1)), { "bulk/0002": "2", "bulk/none": null });
    await succeed(bulk("delete", file("all.json", JSON.stringify(pairs.map((pair) => pair.key))), "--force"));
    assert.deepEqual(JSON.parse((await succeed(key("list", "--prefix", "bulk/"))).stdout), []);
  });

  test("a binding named in a configuration file leads to its namespace", async () => {
    const project = temporaryFolder("wrangler-project");
    const config = { name: "project", compatibility_date: "2026-04-01", kv_namespaces: [{ binding: "KV", id: namespace }] };
    writeFileSync(join(project, "wrangler.json"), JSON.stringify(config));
    await succeed(["kv", "key", "put", "by-binding", "v", "--binding", "KV", "--remote"], { cwd: project });
    assert.equal((await rest(server, "GET", values("by-binding"))).bytes.toString(), "v");
  });

  test("whoami knows the account, and an account that isn't named is found", async () => {
    const nameless = { CLOUDFLARE_ACCOUNT_ID: "" };
    assert.match((await succeed(["whoami"])).stdout, new RegExp(server.account));
    const listed = await succeed(["kv", "namespace", "list"], { env: nameless });
    assert.ok(JSON.parse(listed.stdout).some((found) => found.id === namespace));
  });

  test("an email and key pair is as good as a token", async () => {
    const env = { CLOUDFLARE_API_TOKEN: "", CLOUDFLARE_EMAIL: "someone@example.com", CLOUDFLARE_API_KEY: server.token };
    await succeed(key("put", "by-pair", "v"), { env });
    assert.equal((await rest(server, "GET", values("by-pair"))).bytes.toString(), "v");
  });

  test("what is missing and who is unknown is told as an error", async () => {
    assert.match(await fail(key("get", "none")), /404/);
    const unknown = ["--namespace-id", "0123456789abcdef0123456789abcdef", "--remote"];
    assert.match(await fail(["kv", "key", "put", "k", "v", ...unknown]), /namespace not found/);
    assert.match(await fail(["kv", "key", "list", ...unknown]), /10013/);
    assert.match(await fail(["kv", "namespace", "list"], { env: { CLOUDFLARE_API_TOKEN: "x".repeat(40) } }), /10000|[Aa]uthentication/);
  });

  test("a site's files are uploaded as a deployment does it", async () => {
    const uploaded = await uploadSite();
    const title = "__site-workers_sites_assets";
    const { json } = await rest(server, "GET", kvPath(server, "?per_page=1000"));
    const site = json.result.find((found) => found.title === title);
    const listed = (await rest(server, "GET", kvPath(server, `/${site.id}/keys`))).json.result.map((found) => found.name);
    assert.equal(listed.length, 2, `${listed}\n${uploaded}`);
    const page = listed.find((name) => name.startsWith("index."));
    const { bytes } = await rest(server, "GET", kvPath(server, `/${site.id}/values/${encodeURIComponent(page)}`));
    assert.equal(bytes.toString(), "<p>hello</p>");
    const folders = listed.find((name) => name.startsWith("images/"));
    const image = await rest(server, "GET", kvPath(server, `/${site.id}/values/${encodeURIComponent(folders)}`));
    assert.deepEqual([...image.bytes], [0, 1, 254, 255]);
  });

  /**
   * Deploys a Worker with a site. What a deployment asks about scripts is answered by a stand-in that knows none, what it asks about KV by the
   * server. The site is uploaded first; the script then finds nobody who takes it.
   */
  async function uploadSite() {
    const project = temporaryFolder("wrangler-site");
    mkdirSync(join(project, "public", "images"), { recursive: true });
    writeFileSync(join(project, "public", "index.html"), "<p>hello</p>");
    writeFileSync(join(project, "public", "images", "dot.png"), Buffer.from([0, 1, 254, 255]));
    writeFileSync(join(project, "worker.js"), "export default { fetch() { return new Response('site'); } };");
    const config = { name: "site", main: "worker.js", compatibility_date: "2026-04-01", site: { bucket: "public" } };
    writeFileSync(join(project, "wrangler.json"), JSON.stringify(config));
    const standIn = createServer(withoutScripts).listen(0, "127.0.0.1");
    await once(standIn, "listening");
    const env = { CLOUDFLARE_API_BASE_URL: `http://127.0.0.1:${standIn.address().port}/client/v4` };
    const { stdout, stderr } = await wrangler(["deploy"], { cwd: project, env });
    standIn.close();
    return `${stdout}\n${stderr}`;
  }

  async function withoutScripts(request, response) {
    const path = request.url.replace("/client/v4", "");
    if (!path.includes("/storage/kv/")) {
      request.resume();
      response.writeHead(404, { "Content-Type": "application/json" });
      response.end(JSON.stringify({ success: false, errors: [{ code: 10090, message: "no such script" }], messages: [], result: null }));
      return;
    }
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const body = chunks.length > 0 ? Buffer.concat(chunks) : undefined;
    const { status, headers, bytes } = await rest(server, request.method, path, { body });
    response.writeHead(status, { "Content-Type": headers.get("content-type") });
    response.end(bytes);
  }
});
