// Expiry in real time: a minute is the shortest that the product allows, so this suite takes one, and does nothing in most of it.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { kvPath, rest, startDev } from "./lib/kvasar.mjs";
import { exchange } from "./lib/raw.mjs";

const TTL_SECONDS = 60;

describe("expiry, in real time", () => {
  let dev;
  before(async () => {
    dev = await startDev();
  });
  after(() => dev?.stop());

  const ask = (location, method, path, body, headers = {}) => {
    const credentials = { Authorization: `Bearer ${dev.token}`, "kvasar-namespace": dev.namespace };
    return exchange(dev.bindings[location], method, path, { headers: { ...credentials, ...headers }, body });
  };

  const until = (moment) => new Promise((resolve) => setTimeout(resolve, Math.max(0, moment - Date.now())));

  /** Every way to see a key; each resolves to whether it is there. */
  const ways = {
    "a read at home": async () => (await ask("home", "GET", "/short?urlencoded=true&cache_ttl=3600")).status === 200,
    "a read far away": async () => (await ask("away", "GET", "/short?urlencoded=true&cache_ttl=3600")).status === 200,
    "a bulk read": async () => JSON.parse((await ask("away", "POST", "/bulk/get", '{"keys":["short"],"cacheTtl":"3600"}')).text).short !== null,
    "a listing": async () => JSON.parse((await ask("home", "GET", "/?prefix=short")).text).keys.length === 1,
    "a REST read": async () => (await rest(dev, "GET", kvPath(dev, `/${dev.namespace}/values/short`))).status === 200,
    "a REST listing": async () => (await rest(dev, "GET", kvPath(dev, `/${dev.namespace}/keys?prefix=short`))).json.result.length === 1,
  };

  test("a key is there until its second, and nowhere from then on, whatever caches hold", async () => {
    await ask("home", "PUT", "/stays?urlencoded=true", "v");
    await ask("home", "PUT", "/extended?urlencoded=true&expiration_ttl=60", "v");
    const put = await ask("home", "PUT", `/short?urlencoded=true&expiration_ttl=${TTL_SECONDS}`, "v");
    assert.equal(put.status, 200, put.reason);
    const { keys } = JSON.parse((await ask("home", "GET", "/?prefix=short")).text);
    const end = keys[0].expiration * 1000;
    for (const [way, isThere] of Object.entries(ways)) assert.ok(await isThere(), way);
    await ask("away", "GET", "/extended?urlencoded=true&cache_ttl=3600");

    await until(end - 4000);
    for (const [way, isThere] of Object.entries(ways)) assert.ok(await isThere(), `${way}, four seconds before the end`);
    await ask("home", "PUT", "/extended?urlencoded=true", "for ever");

    await until(end);
    for (const [way, isThere] of Object.entries(ways)) assert.ok(!(await isThere()), `${way}, after the end`);
    assert.equal((await ask("away", "GET", "/stays?urlencoded=true")).text, "v");
    assert.equal((await ask("home", "GET", "/extended?urlencoded=true")).text, "for ever");
    // Elsewhere the copy that was to expire is gone with its second, so the next read asks anew.
    await until(end + 1000);
    assert.equal((await ask("away", "GET", "/extended?urlencoded=true&cache_ttl=3600")).text, "for ever");
  });

  test("what expired can be written anew", async () => {
    assert.equal((await ask("home", "GET", "/short?urlencoded=true")).status, 404);
    await ask("home", "PUT", "/short?urlencoded=true", "again");
    assert.equal((await ask("home", "GET", "/short?urlencoded=true")).text, "again");
  });
});
