// The npm SDK, in both versions that are in use, through every method that touches KV.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import { startDev } from "./lib/kvasar.mjs";

/**
 * What differs between the versions: how a key gets into a path (5 inserts it as it is, so its caller encodes it), and where the namespace
 * stands among the arguments.
 */
const versions = [
  {
    module: "cloudflare-5",
    encode: encodeURIComponent,
    values: (client, { account_id, namespace_id }) => ({
      update: (key, params) => client.kv.namespaces.values.update(namespace_id, key, { account_id, ...params }),
      get: (key) => client.kv.namespaces.values.get(namespace_id, key, { account_id }),
      delete: (key) => client.kv.namespaces.values.delete(namespace_id, key, { account_id }),
      metadata: (key) => client.kv.namespaces.metadata.get(namespace_id, key, { account_id }),
    }),
  },
  {
    module: "cloudflare-7",
    encode: (key) => key,
    values: (client, { account_id, namespace_id }) => ({
      update: (key, params) => client.kv.namespaces.values.update(key, { account_id, namespace_id, ...params }),
      get: (key) => client.kv.namespaces.values.get(key, { account_id, namespace_id }),
      delete: (key) => client.kv.namespaces.values.delete(key, { account_id, namespace_id }),
      metadata: (key) => client.kv.namespaces.metadata.get(key, { account_id, namespace_id }),
    }),
  },
];

async function all(pages) {
  const items = [];
  for await (const item of pages) items.push(item);
  return items;
}

for (const { module, encode, values: valuesOf } of versions) {
  const { version } = JSON.parse(readFileSync(join(import.meta.dirname, "node_modules", module, "package.json"), "utf8"));
  describe(`npm cloudflare ${version}`, () => {
    let server;
    let Cloudflare;
    let client;
    let account_id;
    let namespace_id;
    let values;

    before(async () => {
      ({ default: Cloudflare } = await import(module));
      server = await startDev();
      account_id = server.account;
      client = new Cloudflare({ baseURL: server.rest, apiToken: server.token, maxRetries: 0 });
      namespace_id = (await client.kv.namespaces.create({ account_id, title: "npm" })).id;
      values = valuesOf(client, { account_id, namespace_id });
    });
    after(() => server.stop());

    const namespaces = () => client.kv.namespaces;
    const put = (key, value, params = {}) => values.update(encode(key), { value, ...params });
    const get = async (key) => Buffer.from(await (await values.get(encode(key))).arrayBuffer());
    const metadata = (key) => values.metadata(encode(key));
    const list = (params) => all(namespaces().keys.list(namespace_id, { account_id, ...params }));

    /** A refusal must have this status and exactly one error, of this code. */
    async function refused(call, status, code) {
      await assert.rejects(call, (error) => {
        assert.deepEqual([error.status, error.errors.map((one) => one.code)], [status, [code]], error.message);
        return true;
      });
    }

    test("namespaces are created, read, renamed, listed over pages and removed", async () => {
      const titles = ["npm page a", "npm page b", "npm page c", "npm page d", "npm page e"];
      for (const title of titles) await namespaces().create({ account_id, title });
      const listed = await all(namespaces().list({ account_id, per_page: 2, order: "title", direction: "desc" }));
      assert.deepEqual(listed.map((found) => found.title).filter((title) => titles.includes(title)), titles.toReversed());
      const { id, supports_url_encoding } = listed.find((found) => found.title === "npm page a");
      assert.equal(supports_url_encoding, true);
      assert.equal((await namespaces().update(id, { account_id, title: "npm renamed" })).title, "npm renamed");
      assert.equal((await namespaces().get(id, { account_id })).title, "npm renamed");
      await namespaces().delete(id, { account_id });
      await refused(namespaces().get(id, { account_id }), 404, 10013);
    });

    test("a title is taken once", async () => {
      await namespaces().create({ account_id, title: "npm taken" });
      await refused(namespaces().create({ account_id, title: "npm taken" }), 400, 10014);
    });

    test("a mode and a jurisdiction are kept and returned", async () => {
      const instant = await namespaces().create({ account_id, title: "npm instant", mode: "instant" });
      assert.equal((await namespaces().get(instant.id, { account_id })).mode, "instant");
      const european = await namespaces().create({ account_id, title: "npm european", jurisdiction: "eu" });
      assert.equal((await namespaces().get(european.id, { account_id })).jurisdiction, "eu");
    });

    test("text and files are written, read and deleted", async () => {
      await put("text", "text é ☃");
      assert.equal((await get("text")).toString(), "text é ☃");
      const bytes = Buffer.from(Array.from({ length: 90_000 }, (_, index) => index % 256));
      await put("file", new File([bytes], "a name", { type: "image/png" }));
      assert.deepEqual(await get("file"), bytes);
      await put("file", "");
      assert.equal((await get("file")).length, 0);
      await values.delete("file");
      await values.delete("file");
      await refused(get("file"), 404, 10009);
    });

    test("odd keys are themselves", async () => {
      const keys = ["a/b", "a b+c", "100%", "%2F", "é/☃", "?x=1#y", "!$&'()*+,;=:@"].map((key) => `odd ${key}`);
      for (const key of keys) await put(key, key);
      for (const key of keys) assert.equal((await get(key)).toString(), key);
      assert.deepEqual((await list({ prefix: "odd " })).map((found) => found.name), keys.toSorted());
    });

    test("metadata as an object and as text is kept", async () => {
      await put("metadata/object", "v", { metadata: { a: "text", n: { x: ["one", "two"] } } });
      assert.deepEqual(await metadata("metadata/object"), { a: "text", n: { x: ["one", "two"] } });
      assert.equal((await get("metadata/object")).toString(), "v");
      await put("metadata/text", "v", { metadata: '{"a":[1,null,true]}' });
      assert.deepEqual(await metadata("metadata/text"), { a: [1, null, true] });
      await put("metadata/text", "v");
      assert.equal(await metadata("metadata/text"), null);
      await refused(metadata("metadata/none"), 404, 10009);
    });

    test("expirations are kept and checked", async () => {
      await put("expires/at", "v", { expiration: 4_000_000_000 });
      await put("expires/ttl", "v", { expiration: 1, expiration_ttl: 600 });
      const [at, ttl] = await list({ prefix: "expires/" });
      assert.equal(at.expiration, 4_000_000_000);
      assert.ok(Math.abs(ttl.expiration - Date.now() / 1000 - 600) < 10);
      assert.equal((await values.get(encode("expires/at"))).headers.get("expiration"), "4000000000");
      await refused(put("expires/soon", "v", { expiration_ttl: 59 }), 400, 10034);
      await refused(put("expires/past", "v", { expiration: 1 }), 400, 10033);
    });

    test("keys are listed over pages", async () => {
      const body = Array.from({ length: 2500 }, (_, index) => ({ key: `page/${String(index).padStart(4, "0")}`, value: "v" }));
      const result = await namespaces().bulkUpdate(namespace_id, { account_id, body });
      assert.deepEqual(result, { successful_key_count: 2500, unsuccessful_keys: [] });
      assert.deepEqual((await list({ prefix: "page/" })).map((found) => found.name), body.map((pair) => pair.key));
      assert.equal((await list({ prefix: "page/00", limit: 30 })).length, 100);
    });

    test("many are written, read and deleted at once", async () => {
      const body = [
        { key: "bulk/base64", value: "eHl6", base64: true },
        { key: "bulk/json", value: '{"a":1}', expiration_ttl: 600 },
        { key: "bulk/metadata", value: "é", metadata: { a: [1] } },
      ];
      const keys = body.map((pair) => pair.key);
      await namespaces().bulkUpdate(namespace_id, { account_id, body });
      const read = async (params) => (await namespaces().bulkGet(namespace_id, { account_id, ...params })).values;
      const plain = { "bulk/base64": "xyz", "bulk/json": '{"a":1}', "bulk/metadata": "é", "bulk/none": null };
      assert.deepEqual(await read({ keys: [...keys, "bulk/none"] }), plain);
      assert.deepEqual(await read({ keys: ["bulk/json"], type: "json" }), { "bulk/json": { a: 1 } });
      const full = await read({ keys: keys.slice(1), withMetadata: true });
      assert.deepEqual(full["bulk/metadata"], { value: "é", metadata: { a: [1] } });
      assert.equal(full["bulk/json"].metadata, null);
      assert.ok(Math.abs(full["bulk/json"].expiration - Date.now() / 1000 - 600) < 10);
      const deleted = await namespaces().bulkDelete(namespace_id, { account_id, body: [...keys, "bulk/none"] });
      assert.deepEqual(deleted, { successful_key_count: 4, unsuccessful_keys: [] });
      assert.deepEqual(await list({ prefix: "bulk/" }), []);
    });

    test("the older names of the bulk calls work", async () => {
      const { keys } = namespaces();
      assert.equal((await keys.bulkUpdate(namespace_id, { account_id, body: [{ key: "older", value: "v" }] })).successful_key_count, 1);
      assert.deepEqual((await keys.bulkGet(namespace_id, { account_id, keys: ["older"] })).values, { older: "v" });
      assert.equal((await keys.bulkDelete(namespace_id, { account_id, body: ["older"] })).successful_key_count, 1);
    });

    test("bulk requests are checked", async () => {
      const many = Array.from({ length: 101 }, (_, index) => `k${index}`);
      await refused(namespaces().bulkGet(namespace_id, { account_id, keys: many }), 400, 10029);
      const body = [{ key: "bulk/bad", value: "!", base64: true }];
      await refused(namespaces().bulkUpdate(namespace_id, { account_id, body }), 400, 10012);
      await put("bulk/binary", new File([Buffer.from([255])], "b"));
      await refused(namespaces().bulkGet(namespace_id, { account_id, keys: ["bulk/binary"] }), 400, 10029);
    });

    test("credentials are told apart", async () => {
      const pair = new Cloudflare({ baseURL: server.rest, apiKey: server.token, apiEmail: "someone@example.com", apiToken: null, maxRetries: 0 });
      assert.equal((await pair.kv.namespaces.get(namespace_id, { account_id })).title, "npm");
      const stranger = new Cloudflare({ baseURL: server.rest, apiToken: "x".repeat(40), maxRetries: 0 });
      await assert.rejects(stranger.kv.namespaces.get(namespace_id, { account_id }), (error) => {
        assert.ok([401, 403].includes(error.status), error.message);
        assert.equal(error.errors[0].code, 10000);
        return true;
      });
    });

    test("who the token belongs to, and its account, can be asked", async () => {
      assert.equal((await client.user.tokens.verify()).status, "active");
      assert.deepEqual((await all(client.accounts.list())).map((found) => found.id), [account_id]);
    });
  });
}
