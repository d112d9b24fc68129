// The Workers of examples/workers, each in a real workerd with the configuration that `kvasar workerd-config` writes, at a location of a full chain.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { createServer } from "node:http";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import { createNamespace, kvasar, kvPath, rest, startDev } from "./lib/kvasar.mjs";
import { temporaryFolder } from "./lib/temporary.mjs";
import { serve, workerdVersion } from "./lib/workerd.mjs";

const examples = join(import.meta.dirname, "..", "..", "examples", "workers");

describe(`example Workers under workerd ${workerdVersion}`, () => {
  let dev;
  before(async () => {
    dev = await startDev();
  });
  after(() => dev?.stop());

  /** Runs an example, on a namespace of its own. */
  async function example(context, name, location = "home", of = undefined) {
    const namespace = of ?? (await createNamespace(dev, `${name} at ${location}`));
    const folder = temporaryFolder("example");
    const config = join(folder, "config.capnp");
    const what = ["--location", dev.bindings[location], "--binding", `KV=${namespace}`, "--worker", join(examples, name, "worker.js")];
    const made = await kvasar(dev, "workerd-config", ...what, "--listen", "127.0.0.1:0", "--output", config);
    assert.equal(made.code, 0, made.stderr);
    const worker = await serve(config, folder);
    context.after(() => worker.stop());
    const put = async (key, value) => {
      const { status } = await rest(dev, "PUT", kvPath(dev, `/${namespace}/values/${encodeURIComponent(key)}`), { body: value });
      assert.equal(status, 200);
    };
    return { url: worker.url, put, namespace };
  }

  test("hello-kv stores, reads, lists and deletes", async (context) => {
    const { url } = await example(context, "hello-kv");
    const note = (name) => `${url}/notes/${encodeURIComponent(name)}`;
    assert.equal((await fetch(note("a/1"), { method: "PUT", body: "first", headers: { "content-type": "text/x-note" } })).status, 201);
    assert.equal((await fetch(note("a/2") + "?ttl=3600", { method: "PUT", body: "second" })).status, 201);
    assert.equal((await fetch(note("b"), { method: "PUT", body: "third" })).status, 201);

    const read = await fetch(note("a/1"));
    assert.equal(await read.text(), "first");
    assert.equal(read.headers.get("content-type"), "text/x-note");
    assert.equal(read.headers.get("x-cache"), "HIT", "the location that wrote holds what it wrote");

    const first = await (await fetch(`${url}/notes?prefix=a/&limit=1`)).json();
    assert.deepEqual(first.keys.map(({ name }) => name), ["a/1"]);
    const second = await (await fetch(`${url}/notes?prefix=a/&limit=1&cursor=${encodeURIComponent(first.next)}`)).json();
    assert.deepEqual(second.keys.map(({ name }) => name), ["a/2"]);
    assert.ok(second.keys[0].expiration > Date.now() / 1000 + 3000);
    assert.equal(second.next, null);

    assert.equal((await fetch(note("a/1"), { method: "DELETE" })).status, 204);
    assert.equal((await fetch(note("a/1"))).status, 404);
    const refused = await fetch(note("c") + "?ttl=5", { method: "PUT", body: "x" });
    assert.equal(refused.status, 400);
    assert.match(await refused.text(), /Invalid expiration_ttl of 5\. Expiration TTL must be at least 60\./);
  });

  test("sessions reads at another location what it wrote, and says how old it is", async (context) => {
    const home = await example(context, "sessions");
    const away = await example(context, "sessions", "away", home.namespace);
    assert.equal((await fetch(`${away.url}/cart/ada`)).status, 404);
    for (let round = 1; round <= 20; round += 1) {
      const [writer, reader] = round % 2 === 0 ? [home, away] : [away, home];
      const written = await fetch(`${writer.url}/cart/ada`, { method: "PUT", body: `cart ${round}` });
      assert.equal(written.status, 204);
      const cookie = written.headers.get("set-cookie").split(";")[0];
      assert.match(cookie, /^wrote=[0-9a-f]{16}$/);
      const read = await fetch(`${reader.url}/cart/ada`, { headers: { cookie } });
      assert.equal(await read.text(), `cart ${round}`);
      assert.ok(Number(read.headers.get("x-age-ms")) < 60_000);
    }
    const latest = await fetch(`${home.url}/cart/ada?latest`);
    assert.equal(await latest.text(), "cart 20");
    assert.equal((await fetch(`${home.url}/cart/`)).status, 404);
  });

  test("ab-config draws by weight, keeps a visitor's variant and refuses a bad experiment", async (context) => {
    const { url } = await example(context, "ab-config");
    const experiment = `${url}/?experiment=button`;
    const configure = (body) => fetch(experiment, { method: "PUT", body: JSON.stringify(body) });
    assert.deepEqual(await (await fetch(experiment)).json(), { variant: null });
    assert.equal((await configure({ variants: { blue: "many" } })).status, 400);
    assert.equal((await configure({ variants: { blue: 0 } })).status, 400);
    assert.equal((await configure({ variants: { blue: 0, green: 5 } })).status, 204);
    for (let visitor = 0; visitor < 10; visitor += 1) {
      assert.deepEqual(await (await fetch(experiment)).json(), { variant: "green" });
    }
    const returning = await fetch(experiment, { headers: { cookie: "other=1; ab-button=blue" } });
    assert.deepEqual(await returning.json(), { variant: "blue" });
    assert.match(returning.headers.get("set-cookie"), /^ab-button=blue;/);
    const unknown = await fetch(experiment, { headers: { cookie: "ab-button=red" } });
    assert.deepEqual(await unknown.json(), { variant: "green" });
  });

  test("api-keys lets in who has the right, at the far location, too", async (context) => {
    const { url, put } = await example(context, "api-keys", "away");
    const hash = (key) => createHash("sha256").update(key).digest("hex");
    await put(`key:${hash("reader")}`, JSON.stringify({ owner: "ada", scopes: ["read"] }));
    await put(`key:${hash("writer")}`, JSON.stringify({ owner: "grace", scopes: ["read", "write"] }));
    const call = (method, key) => fetch(`${url}/things`, { method, headers: key ? { authorization: `Bearer ${key}` } : {} });
    assert.equal((await call("GET")).status, 401);
    assert.equal((await call("GET", "nobody")).status, 401);
    assert.deepEqual(await (await call("GET", "reader")).json(), { owner: "ada", path: "/things" });
    assert.equal((await call("POST", "reader")).status, 403);
    assert.deepEqual(await (await call("POST", "writer")).json(), { owner: "grace", path: "/things" });
  });

  test("routing sends each path to the back end of its longest route", async (context) => {
    const backends = await Promise.all(["site", "shop"].map((name) => backend(context, name)));
    const [site, shop] = backends;
    const { url, put } = await example(context, "routing");
    await put("route:example.test/", site);
    await put("route:example.test/shop/cart", shop);
    const ask = async (path, host = "example.test") => {
      const response = await fetch(url + path, { headers: { "x-forwarded-host": host } });
      return response.status === 200 ? response.text() : response.status;
    };
    assert.equal(await ask("/"), "site / example.test");
    assert.equal(await ask("/shop"), "site /shop example.test");
    assert.equal(await ask("/shop/cart/add?item=7"), "shop /shop/cart/add?item=7 example.test");
    assert.equal(await ask("/", "elsewhere.test"), 404);
  });
});

/** A back end that says its name and what it was asked. */
async function backend(context, name) {
  const server = createServer((request, response) => {
    response.end(`${name} ${request.url} ${request.headers["x-forwarded-host"]}`);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  context.after(() => {
    server.close();
    server.closeAllConnections();
  });
  return `http://127.0.0.1:${server.address().port}`;
}
