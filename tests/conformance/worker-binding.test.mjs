// The KV binding of a Worker in a real workerd: the same cases against the reference, a lone origin, and both locations of a full chain. All
// must answer what the case says; where one is meant to differ, the case says so and why.

import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import { createNamespace, createToken, startDev, startOrigin } from "./lib/kvasar.mjs";
import { referenceVersion, startReference } from "./lib/reference.mjs";
import { startWorker, workerdVersion } from "./lib/workerd.mjs";
import { cases } from "./worker/cases.mjs";

const folder = join(import.meta.dirname, "worker");
const modules = [
  ...["runner.mjs", "cases.mjs", "tools.mjs"].map((name) => join(folder, name)),
  ...readdirSync(join(folder, "cases")).map((name) => join(folder, "cases", name)),
];

const CASES_AT_ONCE = 4;

let dev;
let origin;

before(async () => {
  dev = await startDev();
  origin = await startOrigin();
});

after(async () => {
  await Promise.all([dev?.stop(), origin?.stop()]);
});

async function workerAt(server, location) {
  const namespace = await createNamespace(server, `cases at ${location}`);
  return startWorker({ modules, binding: server.bindings[location], token: server.token, namespace });
}

async function answer(worker, name) {
  const response = await fetch(`${worker.url}/${encodeURIComponent(name)}`);
  const text = await response.text();
  assert.equal(response.status, 200, text);
  const { answer, threw } = JSON.parse(text);
  return threw === undefined ? answer : { threw };
}

const targets = [
  { target: "reference", title: `reference miniflare ${referenceVersion}`, open: () => startReference({ modules }) },
  { target: "origin", title: `workerd ${workerdVersion}, a lone origin`, open: () => workerAt(origin, "origin") },
  { target: "home", title: `workerd ${workerdVersion}, location home of edge -> region -> centre`, open: () => workerAt(dev, "home") },
  { target: "away", title: `workerd ${workerdVersion}, location away, 80 ms further`, open: () => workerAt(dev, "away") },
];

for (const { target, title, open } of targets) {
  describe(title, { concurrency: CASES_AT_ONCE }, () => {
    let worker;
    before(async () => {
      worker = await open();
    });
    after(() => worker?.stop());

    for (const { name, expect, differs } of cases) {
      test(name, async () => {
        const expected = differs?.[target] ?? { expect };
        assert.deepEqual(await answer(worker, name), expected.expect, expected.why);
      });
    }
  });
}

describe(`workerd ${workerdVersion}, between locations and without rights`, () => {
  const script = [join(import.meta.dirname, "worker", "calls.mjs")];
  const workers = [];

  /** A Worker that does one call of the binding per request, and answers with what came of it. */
  async function caller(location, { token = dev.token, namespace = dev.namespace } = {}) {
    const worker = await startWorker({ modules: script, binding: dev.bindings[location] ?? location, token, namespace });
    workers.push(worker);
    return async (method, ...args) => {
      const response = await fetch(worker.url, { method: "POST", body: JSON.stringify({ method, args }) });
      return response.json();
    };
  }

  after(() => Promise.all(workers.map((worker) => worker.stop())));

  test("what one location writes a location that never asked reads at once", async () => {
    const [home, away] = await Promise.all([caller("home"), caller("away")]);
    await home("put", "between/new", "from home", { metadata: { n: 1 } });
    assert.deepEqual(await away("getWithMetadata", "between/new"), { value: "from home", metadata: { n: 1 }, cacheStatus: "MISS" });
    assert.equal((await away("getWithMetadata", "between/new")).cacheStatus, "HIT");
    await away("put", "between/back", "from away");
    assert.equal(await home("get", "between/back"), "from away");
  });

  test("cacheStatus tells a first read from a second, of a missing key too", async () => {
    const home = await caller("home");
    assert.deepEqual(await home("getWithMetadata", "status/none"), { value: null, metadata: null, cacheStatus: "MISS" });
    assert.deepEqual(await home("getWithMetadata", "status/none"), { value: null, metadata: null, cacheStatus: "HIT" });
    await home("put", "status/own", "v");
    assert.equal((await home("getWithMetadata", "status/own")).cacheStatus, "HIT");
    assert.equal((await home("list", { prefix: "status/" })).cacheStatus, null, "a listing never comes from a cache");
  });

  test("a wrong token is an error in every call, never a missing key", async () => {
    const call = await caller("home", { token: "x".repeat(40) });
    assert.equal(await call("get", "k"), "Error: KV GET failed: 401 Unauthorized");
    assert.equal(await call("get", ["k"]), "Error: KV GET_BULK failed: 401 Unauthorized");
    assert.equal(await call("put", "k", "v"), "Error: KV PUT failed: 401 Unauthorized");
    assert.equal(await call("delete", "k"), "Error: KV DELETE failed: 401 Unauthorized");
    assert.equal(await call("list"), "Error: KV GET failed: 401 Unauthorized");
  });

  test("an unknown and a malformed namespace are errors in every call, never a missing key", async () => {
    for (const namespace of ["0123456789abcdef0123456789abcdef", "not-a-namespace", ""]) {
      const call = await caller("home", { namespace });
      for (const [method, ...args] of [["get", "k"], ["get", ["k"]], ["put", "k", "v"], ["delete", "k"], ["list"]]) {
        assert.match(await call(method, ...args), /^Error: KV [A-Z_]+ failed: 40[0137] \S/, `${method} in namespace ${JSON.stringify(namespace)}`);
      }
    }
  });

  test("a token that may only read reads, and a token of another namespace can't tell whether a key is there", async () => {
    const other = await createNamespace(dev, "rights");
    const [reading, foreign] = await Promise.all([
      createToken(dev, "reading", "--rights", "read"),
      createToken(dev, "foreign", "--rights", "write", "--namespace", "rights"),
    ]);
    const [owner, reader, stranger] = await Promise.all([caller("home"), caller("home", { token: reading }), caller("home", { token: foreign })]);
    await owner("put", "rights/there", "v");
    assert.equal(await reader("get", "rights/there"), "v");
    assert.match(await reader("put", "rights/there", "new"), /^Error: KV PUT failed: 403 \S/);
    assert.match(await reader("delete", "rights/there"), /^Error: KV DELETE failed: 403 \S/);
    assert.match(await stranger("get", "rights/there"), /^Error: KV GET failed: 40[013] \S/);
    assert.equal(await stranger("get", "rights/there"), await stranger("get", "rights/none"));
    const inUnknown = await caller("home", { token: foreign, namespace: "0123456789abcdef0123456789abcdef" });
    assert.equal(await stranger("get", "rights/there"), await inUnknown("get", "rights/there"));
    const own = await caller("home", { token: foreign, namespace: other });
    await own("put", "rights/own", "v");
    assert.equal(await own("get", "rights/own"), "v");
  });

  test("nothing that listens is a lost connection", async () => {
    const call = await caller("127.0.0.1:1");
    assert.match(await call("get", "k"), /^Error: /);
  });
});
