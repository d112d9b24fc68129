// What Kvasar itself promises on the binding port: headers on every answer, questions with conditions, and who may ask. By hand, over bare
// sockets, because a Worker sees only a part of it.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { createNamespace, createToken, kvasar, kvPath, rest, startServe } from "./lib/kvasar.mjs";
import { exchange, head, open } from "./lib/raw.mjs";

// Two accounts, and edges that take a token's word for no longer than a second.
const WORLD = `
[server]
location = "world"
admin = "127.0.0.1:0"
[cluster]
secret = "a-secret-of-the-conformance-tests-alone"
[origin]
data = DATA
listen = "127.0.0.1:0"
[[account]]
name = "first"
[[account]]
name = "second"
[[tier]]
role = "central"
name = "centre"
upstream = "origin"
control_max_age = "1s"
[[tier]]
role = "regional"
name = "region"
listen = "127.0.0.1:0"
upstream = "centre"
control_max_age = "1s"
[[tier]]
role = "edge"
name = "near"
listen = "127.0.0.1:0"
upstream = "region"
control_max_age = "1s"
[[tier]]
role = "edge"
name = "far"
listen = "127.0.0.1:0"
upstream = "region"
delay = "20ms"
control_max_age = "1s"
[rest]
listen = "127.0.0.1:0"
on = "centre"
`;

const VERSION = /^[0-9a-f]{16}$/;

describe("binding protocol over bare sockets", () => {
  let world;
  let namespace;

  before(async () => {
    world = await startServe(WORLD);
    namespace = await createNamespace(world, "protocol");
  });
  after(() => world?.stop());

  function ask(location, method, path, { headers, body, token = world.token, inNamespace = namespace } = {}) {
    const credentials = { Authorization: `Bearer ${token}`, "kvasar-namespace": inNamespace };
    return exchange(world.bindings[location], method, path, { headers: { ...credentials, ...headers }, body });
  }

  async function put(location, key, value) {
    const response = await ask(location, "PUT", `/${key}?urlencoded=true`, { body: value });
    assert.equal(response.status, 200, response.reason);
    assert.match(response.headers.get("kvasar-version"), VERSION);
    return response.headers.get("kvasar-version");
  }

  const get = (location, key, headers) => ask(location, "GET", `/${key}?urlencoded=true`, { headers });

  /** Every answer says which write it shows, how old it may be at most, and where it came from. */
  function assertProof(response, status, cacheStatus) {
    assert.equal(response.status, status, response.reason);
    assert.match(response.headers.get("kvasar-version") ?? "none", VERSION);
    assert.match(response.headers.get("kvasar-age-ms") ?? "none", /^\d+$/);
    assert.ok(cacheStatus.includes(response.headers.get("cf-cache-status")), response.headers.get("cf-cache-status"));
  }

  test("a present key is answered with its proof, from cache and not", async () => {
    const version = await put("near", "present", "v");
    for (const [location, statuses] of [["near", ["HIT"]], ["far", ["MISS"]], ["far", ["HIT"]]]) {
      const response = await get(location, "present");
      assertProof(response, 200, statuses);
      assert.equal(response.headers.get("kvasar-version"), version);
      assert.ok(response.headers.has("etag"));
      assert.equal(response.text, "v");
    }
  });

  test("an absent key is answered with its proof, from cache and not", async () => {
    assertProof(await get("near", "absent"), 404, ["MISS"]);
    assertProof(await get("near", "absent"), 404, ["HIT"]);
    assert.equal((await get("near", "absent")).reason, "Not Found");
  });

  test("a lone origin proves its answers, too", async () => {
    const version = await put("origin", "at-origin", "v");
    const present = await get("origin", "at-origin");
    assert.equal(present.headers.get("kvasar-version"), version);
    assert.match(present.headers.get("kvasar-age-ms"), /^\d+$/);
    assert.ok(present.headers.has("cf-cache-status"));
    const absent = await get("origin", "not-at-origin");
    assert.equal(absent.status, 404);
    assert.match(absent.headers.get("kvasar-version"), VERSION);
    assert.match(absent.headers.get("kvasar-age-ms"), /^\d+$/);
  });

  test("later writes have higher versions, wherever they are made", async () => {
    const versions = [];
    for (const location of ["near", "far", "origin", "near", "far"]) versions.push(await put(location, "versions", location));
    assert.deepEqual(versions.toSorted(), versions);
    assert.equal(new Set(versions).size, versions.length);
  });

  test("age grows while an answer is held", async () => {
    await put("near", "ageing", "v");
    const first = Number((await get("near", "ageing")).headers.get("kvasar-age-ms"));
    const later = Date.now() + 300;
    let age = first;
    while (Date.now() < later) age = Number((await get("near", "ageing")).headers.get("kvasar-age-ms"));
    assert.ok(age >= first + 250, `${first} then ${age}`);
  });

  test("a copy elsewhere is stale within its age, and never for who asks for a version", async () => {
    const old = await put("near", "elsewhere", "old");
    assert.equal((await get("far", "elsewhere")).text, "old");
    const version = await put("near", "elsewhere", "new");
    const stale = await get("far", "elsewhere");
    assert.ok(["old", "new"].includes(stale.text));
    assert.equal(stale.headers.get("kvasar-version"), stale.text === "old" ? old : version);
    const demanded = await get("far", "elsewhere", { "kvasar-at-least": version });
    assert.equal(demanded.text, "new");
    assert.equal((await get("far", "elsewhere")).text, "new");
  });

  test("a deletion is a write that can be demanded", async () => {
    await put("near", "deleted", "v");
    await get("far", "deleted");
    const response = await ask("near", "DELETE", "/deleted?urlencoded=true");
    assert.equal(response.status, 200);
    assert.equal(response.headers.get("content-length"), "0");
    assert.equal((await get("near", "deleted")).status, 404);
    const version = response.headers.get("kvasar-version");
    assert.match(version, VERSION);
    assert.equal((await get("far", "deleted", { "kvasar-at-least": version })).status, 404);
  });

  test("a malformed demand for a version is refused", async () => {
    await put("near", "demand", "v");
    for (const demand of ["x", "-1", "123", "zzzzzzzzzzzzzzzz"]) {
      assert.equal((await get("near", "demand", { "kvasar-at-least": demand })).status, 400, demand);
    }
  });

  test("If-None-Match of what is current is answered 304, of anything else in full", async () => {
    await put("near", "condition", "v");
    const { headers } = await get("far", "condition");
    const unchanged = await get("far", "condition", { "If-None-Match": headers.get("etag") });
    assert.equal(unchanged.status, 304);
    assert.equal(unchanged.headers.get("kvasar-version"), headers.get("kvasar-version"));
    assert.match(unchanged.headers.get("kvasar-age-ms"), /^\d+$/);
    assert.equal((await get("far", "condition", { "If-None-Match": '"another"' })).status, 200);
  });

  test("keys are decoded only when the request says so", async () => {
    const raw = await ask("near", "PUT", "/a%2Fb", { body: "raw" });
    assert.equal(raw.status, 200);
    await put("near", "a%2Fb", "decoded");
    assert.equal((await ask("near", "GET", "/a%2Fb")).text, "raw");
    assert.equal((await ask("near", "GET", "/a%252Fb?urlencoded=true")).text, "raw");
    assert.equal((await ask("near", "GET", "/a%2Fb?urlencoded=TRUE")).text, "decoded");
    assert.equal((await ask("near", "GET", "/a%2fb?urlencoded=true")).text, "decoded");
  });

  test("metadata and expiration come back as headers", async () => {
    const at = Math.floor(Date.now() / 1000) + 1000;
    const headers = { "CF-KV-Metadata": '{"m":"\\u2603"}' };
    await ask("near", "PUT", `/headers?urlencoded=true&expiration=${at}`, { headers, body: "v" });
    const response = await get("far", "headers");
    assert.deepEqual(JSON.parse(response.headers.get("cf-kv-metadata")), { m: "☃" });
    assert.equal(response.headers.get("cf-expiration"), `${at}`);
  });

  test("what a runtime checks for its Workers is checked here, too, with the product's texts", async () => {
    const long = "k".repeat(513);
    const checks = [
      ["GET", "/%zz?urlencoded=true", 400, "Could not URL-decode key name"],
      ["GET", "/%ff?urlencoded=true", 400, "Could not URL-decode key name"],
      ["PUT", "/a%2?urlencoded=true", 400, "Could not URL-decode key name"],
      ["GET", "/%2E?urlencoded=true", 400, 'Illegal key name ".". Please use a different name.'],
      ["DELETE", "/%2E%2e?urlencoded=true", 400, 'Illegal key name "..". Please use a different name.'],
      ["GET", `/${long}?urlencoded=true`, 414, "UTF-8 encoded length of 513 exceeds key length limit of 512."],
      ["GET", `/?prefix=${long}`, 414, "UTF-8 encoded length of 513 exceeds key length limit of 512."],
      ["GET", "/k?urlencoded=true&cache_ttl=x", 400, "Invalid cache_ttl of NaN. Cache TTL must be at least 30."],
      ["GET", "/?key_count_limit=0", 400, "Invalid key_count_limit of 0. Please specify an integer greater than 0."],
      ["GET", "/?key_count_limit=-3", 400, "Invalid key_count_limit of -3. Please specify an integer greater than 0."],
      ["GET", "/?key_count_limit=x", 400, "Invalid key_count_limit of NaN. Please specify an integer greater than 0."],
      ["PUT", "/k?urlencoded=true&expiration_ttl=x", 400, "Invalid expiration_ttl of x. Please specify integer greater than 0."],
      [
        "PUT",
        "/k?urlencoded=true&expiration=x",
        400,
        "Invalid expiration of x. Please specify integer greater than the current number of seconds since the UNIX epoch.",
      ],
    ];
    for (const [method, path, status, text] of checks) {
      const response = await ask("near", method, path, { body: method === "PUT" ? "v" : undefined });
      assert.deepEqual([response.status, response.reason], [status, text], `${method} ${path.slice(0, 60)}`);
    }
  });

  test("methods and routes that there are not are told apart", async () => {
    assert.equal((await ask("near", "PATCH", "/k")).status, 405);
    assert.equal((await ask("near", "POST", "/k")).status, 404);
    assert.equal((await ask("near", "PUT", "/a/b?urlencoded=true", { body: "v" })).status, 404);
  });

  test("bulk get takes only what it should", async () => {
    const bulk = (body) => ask("near", "POST", "/bulk/get", { body, headers: { "Content-Type": "application/json" } });
    await put("near", "bulk-one", "1");
    assert.deepEqual(JSON.parse((await bulk('{"keys":["bulk-one","bulk-none"],"cacheTtl":"60"}')).text), { "bulk-one": "1", "bulk-none": null });
    const bad = [
      "",
      "nonsense",
      '{"keys":["a"]',
      "[]",
      "{}",
      '{"keys":"a"}',
      '{"keys":[1]}',
      '{"keys":[null]}',
      '{"keys":["a"],"type":1}',
      '{"keys":["a"],"withMetadata":"yes"}',
      '{"keys":["a"],"cacheTtl":"x"}',
      '{"keys":["a"],"cacheTtl":[]}',
      Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x7d]),
      "[".repeat(100_000),
      '{"keys":'.repeat(50_000),
    ];
    for (const body of bad) {
      const { status, reason } = await bulk(body);
      assert.equal(status, 400, `${body.slice(0, 60)}: ${status} ${reason}`);
      assert.notEqual(reason, "");
    }
  });

  test("who shows no token, another scheme or an unknown token is refused alike", async () => {
    const refusal = async (headers) => {
      const { status, reason } = await exchange(world.bindings.near, "GET", "/k", { headers: { "kvasar-namespace": namespace, ...headers } });
      return [status, reason];
    };
    for (const headers of [
      {},
      { Authorization: "" },
      { Authorization: "Bearer" },
      { Authorization: "Bearer " },
      { Authorization: "Basic eDp5" },
      { Authorization: `Bearer ${"x".repeat(40)}` },
      { Authorization: `Bearer ${"x".repeat(8000)}` },
    ]) {
      assert.deepEqual(await refusal(headers), [401, "Unauthorized"], JSON.stringify(headers).slice(0, 80));
    }
  });

  test("another account's namespace is answered as one that isn't there", async () => {
    const [, second] = world.ready.accounts;
    const stranger = { token: second.token };
    await put("near", "first-accounts", "v");
    const unknown = await ask("near", "GET", "/k", { ...stranger, inNamespace: "0123456789abcdef0123456789abcdef" });
    assert.ok([400, 401, 403].includes(unknown.status), `${unknown.status}`);
    for (const path of ["/first-accounts", "/not-there", "/?prefix=first"]) {
      const foreign = await ask("near", "GET", path, stranger);
      assert.deepEqual([foreign.status, foreign.reason], [unknown.status, unknown.reason]);
    }
    const write = await ask("near", "PUT", "/first-accounts", { ...stranger, body: "x" });
    assert.deepEqual([write.status, write.reason], [unknown.status, unknown.reason]);
    const foreign = await rest(world, "GET", kvPath(world), { token: second.token });
    const nobodys = await rest(world, "GET", `/accounts/${"0".repeat(32)}/storage/kv/namespaces`, { token: second.token });
    const refusal = ({ status, json }, account) => [status, JSON.stringify(json).replaceAll(account, "ACCOUNT")];
    assert.deepEqual(refusal(foreign, world.account), refusal(nobodys, "0".repeat(32)));
    assert.ok(foreign.status >= 400);
  });

  test("a revoked token is refused at once where it was revoked, and soon everywhere", async () => {
    const token = await createToken(world, "to revoke");
    await put("near", "revocation", "v");
    assert.equal((await ask("far", "GET", "/revocation", { token })).status, 200);
    const listed = JSON.parse((await kvasar(world, "token", "list", "--json")).stdout);
    const { id } = listed.find((found) => found.name === "to revoke");
    const revoked = await kvasar(world, "token", "revoke", id);
    assert.equal(revoked.code, 0, revoked.stderr);
    assert.ok([401, 403].includes((await rest(world, "GET", kvPath(world), { token })).status));
    const deadline = Date.now() + 5000;
    for (;;) {
      const { status } = await ask("far", "GET", "/revocation", { token });
      if (status === 401) break;
      assert.equal(status, 200);
      assert.ok(Date.now() < deadline, "still accepted five seconds after it was revoked");
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  });

  test("a removed namespace is refused soon everywhere, and its title is free again", async () => {
    const removed = await createNamespace(world, "to remove");
    assert.equal((await ask("near", "PUT", "/k", { inNamespace: removed, body: "v" })).status, 200);
    assert.equal((await rest(world, "DELETE", kvPath(world, `/${removed}`))).status, 200);
    assert.equal((await rest(world, "GET", kvPath(world, `/${removed}/values/k`))).status, 404);
    const deadline = Date.now() + 5000;
    while ((await ask("near", "GET", "/k", { inNamespace: removed })).status === 200) {
      assert.ok(Date.now() < deadline, "still answered five seconds after it was removed");
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    const again = await createNamespace(world, "to remove");
    assert.notEqual(again, removed);
    assert.equal((await rest(world, "GET", kvPath(world, `/${again}/keys`))).json.result.length, 0);
  });

  test("requests on one connection are answered in their order", async () => {
    await put("near", "pipeline-a", "A");
    await put("near", "pipeline-b", "B");
    const connection = await open(world.bindings.near);
    const fields = { Authorization: `Bearer ${world.token}`, "kvasar-namespace": namespace };
    const paths = ["/pipeline-a", "/pipeline-b", "/pipeline-none", "/pipeline-a"];
    connection.send(paths.map((path) => head("GET", path, fields)).join(""));
    const answers = [];
    for (const _ of paths) answers.push(await connection.response());
    connection.destroy();
    assert.deepEqual(answers.map((answer) => [answer.status, answer.status === 200 ? answer.text : ""]), [[200, "A"], [200, "B"], [404, ""], [200, "A"]]);
  });
});
