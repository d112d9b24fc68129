// Clients that break the rules of HTTP, are slow, or go away: the documented error or a clean refusal, the old value stays, the connection ends
// where its framing is in doubt, and everybody else is served as ever. On both doors.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { createNamespace, kvPath, rest, startServe } from "./lib/kvasar.mjs";
import { head, open } from "./lib/raw.mjs";

const HEAD_DEADLINE_MS = 1000;
const BODY_DEADLINE_MS = 1000;
const IDLE_DEADLINE_MS = 2000;
/** How much later than its deadline a refusal may come on a busy machine. */
const MARGIN_MS = 4000;

const WORLD = `
[server]
location = "hostile"
admin = "127.0.0.1:0"
[cluster]
secret = "a-secret-of-the-conformance-tests-alone"
[origin]
data = DATA
[[account]]
name = "default"
[[tier]]
role = "central"
name = "centre"
upstream = "origin"
listen = "127.0.0.1:0"
[[tier]]
role = "edge"
name = "edge"
listen = "127.0.0.1:0"
upstream = "centre"
[rest]
listen = "127.0.0.1:0"
on = "centre"
[limits]
head_deadline = "${HEAD_DEADLINE_MS}ms"
body_idle_deadline = "${BODY_DEADLINE_MS}ms"
idle_deadline = "${IDLE_DEADLINE_MS}ms"
`;

let world;
let namespace;

before(async () => {
  world = await startServe(WORLD);
  namespace = await createNamespace(world, "hostile");
});
after(() => world?.stop());

/** The two doors: where a value is, and with which headers. */
const doors = {
  "binding port": {
    address: () => world.bindings.edge,
    path: (key) => `/${key}?urlencoded=true`,
    headers: () => ({ Authorization: `Bearer ${world.token}`, "kvasar-namespace": namespace }),
  },
  "REST API": {
    address: () => world.rest,
    path: (key) => `/client/v4${kvPath(world, `/${namespace}/values/${key}`)}`,
    headers: () => ({ Authorization: `Bearer ${world.token}` }),
  },
};

for (const [name, door] of Object.entries(doors)) {
  describe(`hostile clients at the ${name}`, () => {
    const connect = () => open(door.address());
    const request = (method, key, headers = {}) => head(method, door.path(key), { ...door.headers(), ...headers });
    /** A request head from its lines, each with the end that it is to have. */
    const lines = (...parts) => parts.join("");
    const credentials = () => Object.entries(door.headers()).map(([field, value]) => `${field}: ${value}\r\n`).join("");

    async function write(key, value) {
      const connection = await connect();
      connection.send(request("PUT", key, { "Content-Length": Buffer.byteLength(value) }), value);
      const response = await connection.response();
      connection.destroy();
      assert.equal(response.status, 200, response.text);
    }

    /** What everybody else sees meanwhile. */
    async function read(key) {
      const connection = await connect();
      connection.send(request("GET", key));
      const response = await connection.response();
      connection.destroy();
      return response.status === 200 ? response.text : response.status;
    }

    /** The request is refused with one of these, and the connection then ended by the server. */
    async function refused(bytes, statuses = [400]) {
      const connection = await connect();
      connection.send(bytes);
      const response = await connection.response();
      assert.ok(statuses.includes(response.status), `${response.status} ${response.reason} for ${bytes.slice(0, 200)}`);
      await connection.closed();
      connection.destroy();
    }

    /** Either refused, or ended without a word: for what is no HTTP at all. */
    async function refusedOrEnded(bytes, statuses = [400]) {
      const connection = await connect();
      connection.send(bytes);
      await connection.closed();
      const [, status] = connection.received.toString("latin1").match(/^HTTP\/1\.[01] (\d{3})/) ?? [];
      if (status !== undefined) assert.ok(statuses.includes(Number(status)), status);
      connection.destroy();
    }

    test("a length and an encoding at once are refused, and nothing is written", async () => {
      await write("both", "old");
      const body = "5\r\nhello\r\n0\r\n\r\n";
      await refused(request("PUT", "both", { "Content-Length": body.length, "Transfer-Encoding": "chunked" }) + body);
      await refused(request("PUT", "both", { "Transfer-Encoding": "chunked", "Content-Length": "5" }) + body);
      assert.equal(await read("both"), "old");
    });

    test("lengths that contradict each other or are none are refused", async () => {
      await write("lengths", "old");
      for (const length of ["5\r\nContent-Length: 6", "5, 6", "-5", "+5", "0x5", "5a", "", "99999999999999999999999"]) {
        await refused(request("PUT", "lengths", { "Content-Length": length }) + "hello", [400, 413]);
      }
      assert.equal(await read("lengths"), "old");
    });

    test("encodings other than chunked are refused", async () => {
      for (const encoding of ["gzip", "identity", "xchunked", "chunked, gzip", "chunked\r\nTransfer-Encoding: chunked"]) {
        await refused(request("PUT", "encodings", { "Transfer-Encoding": encoding }) + "0\r\n\r\n", [400, 501]);
      }
      assert.equal(await read("encodings"), 404);
    });

    test("a bare line feed ends no line", async () => {
      const path = door.path("bare");
      await refused(lines(`GET ${path} HTTP/1.1\n`, "Host: kvasar\n", credentials(), "\n"));
      await refused(lines(`GET ${path} HTTP/1.1\r\n`, "Host: kvasar\n", credentials(), "\r\n"));
      await refused(lines(`GET ${path} HTTP/1.1\r\n`, "Host: kvasar\r\n", credentials(), "\n"));
    });

    test("a missing and a doubled Host are refused", async () => {
      const path = door.path("host");
      await refused(lines(`GET ${path} HTTP/1.1\r\n`, credentials(), "\r\n"));
      await refused(lines(`GET ${path} HTTP/1.1\r\n`, "Host: a\r\n", "Host: a\r\n", credentials(), "\r\n"));
      await refused(lines(`GET ${path} HTTP/1.1\r\n`, "Host: a\r\n", credentials(), "host: b\r\n", "\r\n"));
    });

    test("malformed lines and header fields are refused", async () => {
      const path = door.path("malformed");
      const first = `GET ${path} HTTP/1.1\r\nHost: kvasar\r\n`;
      for (const bytes of [
        "GET\r\n\r\n",
        `GET ${path}\r\n\r\n`,
        `GET  ${path} HTTP/1.1\r\nHost: kvasar\r\n\r\n`,
        `GET ${path} HTTP/1.1 \r\nHost: kvasar\r\n\r\n`,
        `GET ${path} HTTP/3.7\r\nHost: kvasar\r\n\r\n`,
        `G\x00T ${path} HTTP/1.1\r\nHost: kvasar\r\n\r\n`,
        `${first}no colon\r\n\r\n`,
        `${first}: no name\r\n\r\n`,
        `${first}a space : before\r\n\r\n`,
        `${first}folded: a\r\n b\r\n\r\n`,
        `${first}nul: a\x00b\r\n\r\n`,
        `${first}return: a\rb\r\n\r\n`,
      ]) {
        await refused(bytes, [400, 505]);
      }
    });

    test("what is no HTTP at all is refused or ended", async () => {
      await refusedOrEnded(Buffer.from("16030100c8010000c403035d", "hex"));
      await refusedOrEnded("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400, 505]);
      await refusedOrEnded(Buffer.alloc(4096, 0xff));
      await refusedOrEnded(`${"\r\n".repeat(2000)}nonsense\r\n\r\n`);
    });

    test("methods, paths and headers without end are refused", async () => {
      const tooLarge = [400, 405, 414, 431];
      await refused(`${"M".repeat(65_536)} ${door.path("k")} HTTP/1.1\r\nHost: kvasar\r\n\r\n`, tooLarge);
      await refused(`GET /${"p".repeat(300_000)} HTTP/1.1\r\nHost: kvasar\r\n\r\n`, [414, 431]);
      await refused(`GET ${door.path("k")} HTTP/1.1\r\nHost: kvasar\r\nlarge: ${"h".repeat(300_000)}\r\n\r\n`, [431]);
      await refused(`GET ${door.path("k")} HTTP/1.1\r\nHost: kvasar\r\n${"many: x\r\n".repeat(5000)}\r\n`, [431]);
    });

    test("a header that never ends is refused while it comes", async () => {
      const connection = await connect();
      connection.send(`GET ${door.path("k")} HTTP/1.1\r\nHost: kvasar\r\nendless: `);
      let sent = 0;
      while (!connection.ended && sent < 64_000_000) {
        connection.send("e".repeat(65_536));
        sent += 65_536;
        await new Promise((resolve) => setImmediate(resolve));
      }
      await connection.closed();
      connection.destroy();
      assert.ok(sent < 64_000_000, `${sent} bytes were taken`);
    });

    test("odd methods and targets are answered in good order", async () => {
      for (const bytes of [
        `OPTIONS * HTTP/1.1\r\nHost: kvasar\r\n${credentials()}\r\n`,
        `CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n${credentials()}\r\n`,
        `BREW ${door.path("k")} HTTP/1.1\r\nHost: kvasar\r\n${credentials()}\r\n`,
        `GET http://example.com/elsewhere HTTP/1.1\r\nHost: example.com\r\n${credentials()}\r\n`,
        `GET ${door.path("k")} HTTP/1.0\r\n${credentials()}\r\n`,
      ]) {
        const connection = await connect();
        connection.send(bytes);
        const { status } = await connection.response();
        assert.ok(status >= 400 && status < 500, `${status} for ${bytes.slice(0, 60)}`);
        connection.destroy();
      }
    });

    test("who asks whether to go on is told to", async () => {
      const connection = await connect();
      connection.send(request("PUT", "continue", { "Content-Length": 5, Expect: "100-continue" }));
      assert.equal((await connection.response()).status, 100);
      connection.send("hello");
      assert.equal((await connection.response()).status, 200);
      connection.destroy();
      assert.equal(await read("continue"), "hello");
    });

    test("a body cut midway leaves the old value", async () => {
      await write("cut", "old");
      const chunk = "x".repeat(100_000);
      const halves = [
        [request("PUT", "cut", { "Content-Length": 200_000 }), chunk],
        [request("PUT", "cut", { "Content-Length": 10 }), "hello"],
        [request("PUT", "cut", { "Transfer-Encoding": "chunked" }), `${chunk.length.toString(16)}\r\n${chunk}\r\n`],
        [request("PUT", "cut", { "Transfer-Encoding": "chunked" }), "5\r\nhel"],
      ];
      for (const parts of halves) {
        const ended = await connect();
        ended.send(...parts).finish();
        await ended.closed();
        ended.destroy();
        const gone = await connect();
        gone.send(...parts);
        await new Promise((resolve) => gone.socket.write("", resolve));
        gone.socket.resetAndDestroy();
      }
      assert.equal(await read("cut"), "old");
      const listed = await rest(world, "GET", kvPath(world, `/${namespace}/keys?prefix=cut`));
      assert.deepEqual(listed.json.result, [{ name: "cut" }]);
    });

    test("chunks that are none are refused, and the old value stays", async () => {
      await write("chunks", "old");
      for (const body of ["zz\r\nhello\r\n0\r\n\r\n", "-5\r\nhello\r\n0\r\n\r\n", "5\r\nhelloXX0\r\n\r\n", "\r\nhello", "ffffffffffffffffff\r\nhello", "5 5\r\nhello\r\n0\r\n\r\n"]) {
        await refused(request("PUT", "chunks", { "Transfer-Encoding": "chunked" }) + body);
      }
      assert.equal(await read("chunks"), "old");
    });

    test("what follows a body is read as the next request", async () => {
      const connection = await connect();
      connection.send(request("PUT", "follows", { "Content-Length": 5 }), "hello", "this is no request\r\n\r\n");
      assert.equal((await connection.response()).status, 200);
      assert.equal((await connection.response()).status, 400);
      await connection.closed();
      connection.destroy();
      assert.equal(await read("follows"), "hello");
    });

    test("a head that comes slowly is cut off at its deadline", async () => {
      const connection = await connect();
      const started = Date.now();
      connection.send(`GET ${door.path("slow")} HTTP/1.1\r\n`);
      const drip = setInterval(() => connection.ended || connection.send("a"), 100);
      await connection.closed();
      clearInterval(drip);
      connection.destroy();
      const took = Date.now() - started;
      assert.ok(took >= HEAD_DEADLINE_MS - 100 && took < HEAD_DEADLINE_MS + MARGIN_MS, `${took} ms`);
    });

    test("a connection without a request is ended, and one kept alive too", async () => {
      const silent = await connect();
      const kept = await connect();
      kept.send(request("GET", "idle"));
      await kept.response();
      assert.ok((await silent.closed()) < IDLE_DEADLINE_MS + MARGIN_MS);
      assert.ok((await kept.closed()) < IDLE_DEADLINE_MS + MARGIN_MS);
      silent.destroy();
      kept.destroy();
    });

    test("a body that stalls is given up, and the old value stays", async () => {
      await write("stalls", "old");
      for (const headers of [{ "Content-Length": 100 }, { "Transfer-Encoding": "chunked" }]) {
        const connection = await connect();
        const started = Date.now();
        connection.send(request("PUT", "stalls", headers), "5\r\nhello\r\n");
        const { status } = await connection.response();
        assert.equal(status, 408);
        await connection.closed();
        connection.destroy();
        const took = Date.now() - started;
        assert.ok(took >= BODY_DEADLINE_MS - 100 && took < BODY_DEADLINE_MS + MARGIN_MS, `${took} ms`);
      }
      assert.equal(await read("stalls"), "old");
    });

    test("a body that comes slowly but steadily is taken", async () => {
      const connection = await connect();
      connection.send(request("PUT", "steady", { "Content-Length": 8 }));
      for (let part = 0; part < 8; part += 1) {
        connection.send("s");
        await new Promise((resolve) => setTimeout(resolve, BODY_DEADLINE_MS / 4));
      }
      assert.equal((await connection.response()).status, 200);
      connection.destroy();
      assert.equal(await read("steady"), "ssssssss");
    });

    test("a too long value is refused once it has all been sent", async () => {
      const connection = await connect();
      const length = 26_214_401;
      connection.send(request("PUT", "too-long", { "Content-Length": length }));
      const chunk = Buffer.alloc(1 << 20);
      for (let left = length; left > 0; left -= chunk.length) {
        const room = connection.socket.write(left < chunk.length ? chunk.subarray(0, left) : chunk);
        if (!room) await new Promise((resolve) => connection.socket.once("drain", resolve).once("close", resolve));
      }
      const { status, reason, text } = await connection.response();
      connection.destroy();
      assert.equal(status, 413);
      assert.match(`${reason} ${text}`, /Value length of 26214401 exceeds limit of 26214400\./);
    });

    test("hundreds of stalled connections keep nobody from being served", async () => {
      await write("served", "v");
      const stalled = await Promise.all(Array.from({ length: 300 }, connect));
      for (const [index, connection] of stalled.entries()) {
        connection.send(index % 2 === 0 ? "GET /never" : `${request("PUT", "never", { "Content-Length": 1_000_000 })}begun`);
      }
      const started = Date.now();
      assert.equal(await read("served"), "v");
      assert.ok(Date.now() - started < MARGIN_MS);
      await Promise.all(stalled.map((connection) => connection.closed()));
      for (const connection of stalled) connection.destroy();
      assert.equal(await read("never"), 404);
    });

    test("who doesn't read a large answer holds up nobody", async () => {
      const large = "x".repeat(20_000_000);
      await write("large", large);
      const lazy = await Promise.all(Array.from({ length: 8 }, connect));
      for (const connection of lazy) {
        connection.socket.pause();
        connection.send(request("GET", "large"));
      }
      assert.equal((await read("large")).length, large.length);
      for (const connection of lazy) connection.destroy();
    });

    test("after all this the server is the same process, and well", async () => {
      assert.equal(world.child.exitCode, null);
      assert.equal((await fetch(`${world.ready.admin}/readyz`)).status, 200);
    });
  });
}

describe("hostile bodies at the REST API", () => {
  const ask = (method, path, body, headers = {}) => rest(world, method, kvPath(world, path), { body, headers });

  /** Refused with the failure envelope. */
  async function refused(method, path, body, headers) {
    const { status, json, bytes } = await ask(method, path, body, headers);
    const what = `${method} ${path} ${String(body).slice(0, 80)}: ${status} ${bytes.subarray(0, 200)}`;
    assert.ok(status >= 400 && status < 500, what);
    assert.equal(json.success, false, what);
    // A bulk reply that failed says so in its counts, too (rest-api 4).
    const nothing = path.includes("/bulk") && !path.endsWith("/get") ? { successful_key_count: 0, unsuccessful_keys: [] } : null;
    assert.deepEqual(json.result, nothing, what);
    assert.ok(json.errors.length > 0 && json.errors[0].code >= 1000 && json.errors[0].message !== "", what);
  }

  test("wrong types in every field of a namespace are refused", async () => {
    const bad = ["", "nonsense", "[]", "null", '"x"', "{}", '{"title":null}', '{"title":1}', '{"title":[]}', '{"title":""}', '{"title":"x","mode":1}'];
    const worse = ['{"title":"x","jurisdiction":[]}', '{"title":"x","jurisdiction":"moon"}', JSON.stringify({ title: "t".repeat(513) })];
    for (const body of [...bad, ...worse, "[".repeat(200_000), '{"title":'.repeat(50_000), Buffer.from('{"title":"\xff"}', "latin1")]) {
      await refused("POST", "", body);
    }
    for (const body of ["", "[]", "{}", '{"title":5}']) await refused("PUT", `/${namespace}`, body);
  });

  test("wrong types in every field of a bulk write are refused, and nothing is written", async () => {
    const good = { key: "bulk-good", value: "v" };
    const entries = [
      1,
      null,
      "x",
      [],
      {},
      { key: "k" },
      { value: "v" },
      { key: 1, value: "v" },
      { key: "k", value: 1 },
      { key: "k", value: null },
      { key: "", value: "v" },
      { key: ".", value: "v" },
      { key: "k".repeat(513), value: "v" },
      { ...good, key: "k", base64: "yes" },
      { ...good, key: "k", base64: true, value: "not base64!" },
      { ...good, key: "k", expiration: "soon" },
      { ...good, key: "k", expiration: 1 },
      { ...good, key: "k", expiration_ttl: 59 },
      { ...good, key: "k", expiration_ttl: {} },
      { ...good, key: "k", metadata: "m".repeat(1025) },
    ];
    const put = (body, headers) => refused("PUT", `/${namespace}/bulk`, body, headers);
    for (const entry of entries) await put(JSON.stringify([good, entry]));
    const whole = JSON.stringify([good]);
    for (const body of ["", "{}", "null", "1", whole.slice(0, -1), `${whole}x`, `[${whole}]`, "[".repeat(200_000), '[{"key":'.repeat(50_000)]) await put(body);
    await put(Buffer.from('[{"key":"bulk-good","value":"\xff"}]', "latin1"));
    assert.equal((await ask("GET", `/${namespace}/values/bulk-good`)).status, 404);
  });

  test("wrong types in bulk reads and deletions are refused", async () => {
    for (const body of ["", "{}", "null", '["a",1]', "[null]", '["a"', '[["a"]]', "[".repeat(100_000)]) {
      await refused("POST", `/${namespace}/bulk/delete`, body);
      await refused("DELETE", `/${namespace}/bulk`, body);
    }
    for (const body of ["", "[]", "{}", '{"keys":"a"}', '{"keys":[1]}', '{"keys":[]}', '{"keys":["a"],"type":"blob"}', '{"keys":["a"],"withMetadata":1}']) {
      await refused("POST", `/${namespace}/bulk/get`, body);
    }
  });

  test("parameters that are none are refused", async () => {
    for (const query of ["limit=0", "limit=1001", "limit=x", "limit=-1", "cursor=nonsense", `prefix=${"p".repeat(513)}`]) {
      await refused("GET", `/${namespace}/keys?${query}`);
    }
    for (const query of ["page=0", "page=-1", "page=x", "per_page=0", "per_page=1001", "per_page=x", "order=size", "direction=sideways"]) {
      await refused("GET", `?${query}`);
    }
    for (const query of ["expiration=x", "expiration=1", "expiration_ttl=x", "expiration_ttl=59", "expiration_ttl=-1"]) {
      await refused("PUT", `/${namespace}/values/k?${query}`, "v");
    }
  });

  test("keys and ids that are none are refused", async () => {
    for (const key of ["%zz", "%", "%ff", "%ed%a0%80", "k".repeat(513)]) {
      const connection = await open(world.rest);
      connection.send(head("GET", `/client/v4${kvPath(world, `/${namespace}/values/${key}`)}`, { Authorization: `Bearer ${world.token}` }));
      const { status, text } = await connection.response();
      connection.destroy();
      assert.ok(status >= 400 && status < 500 && JSON.parse(text).success === false, `${key}: ${status} ${text}`);
    }
    for (const id of ["x", "0123", "not-a-namespace-id-but-32-chars!!", "0".repeat(33)]) await refused("GET", `/${id}`);
  });

  test("multipart that is none is refused, and the old value stays", async () => {
    const path = `/${namespace}/values/multipart`;
    assert.equal((await ask("PUT", path, "old")).status, 200);
    const type = { "Content-Type": "multipart/form-data; boundary=b" };
    const part = (name, value) => `--b\r\nContent-Disposition: form-data; name="${name}"\r\n\r\n${value}\r\n`;
    await refused("PUT", path, part("value", "new"), type);
    await refused("PUT", path, "--b\r\nContent-Disposition: form-data; name=\"value\"\r\n\r\nnew", type);
    await refused("PUT", path, `${part("metadata", "{}")}--b--\r\n`, type);
    await refused("PUT", path, `${part("value", "new")}${part("metadata", "not json")}--b--\r\n`, type);
    await refused("PUT", path, `${part("value", "new")}${part("metadata", JSON.stringify("m".repeat(1024)))}--b--\r\n`, type);
    await refused("PUT", path, "nonsense", type);
    await refused("PUT", path, "", type);
    await refused("PUT", path, part("value", "new"), { "Content-Type": "multipart/form-data" });
    assert.equal((await ask("GET", path)).bytes.toString(), "old");
  });
});
