// `kvasar dev` as a person starts it: what it prints works when pasted, and `--worker` runs a Worker at each location.

import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";

import { KVASAR, kvPath, rest, startDev } from "./lib/kvasar.mjs";
import { run, start, stop, until } from "./lib/process.mjs";
import { exchange } from "./lib/raw.mjs";
import { temporaryFolder } from "./lib/temporary.mjs";
import { serve, workerdProgram, workerdVersion } from "./lib/workerd.mjs";

const LOCATIONS = ["--location", "home=127.0.0.1:0", "--location", "away=127.0.0.1:0,region=far,delay=80ms"];
const VISITS = `export default {
  async fetch(request, env) {
    const visits = Number(await env.KV.get("visits") ?? 0) + 1;
    await env.KV.put("visits", String(visits));
    return new Response(\`visit \${visits}\\n\`);
  }
};
`;

describe(`kvasar dev and its Workers under workerd ${workerdVersion}`, () => {
  /** Starts it in a folder of its own, with workerd where npm puts it; resolves once it has said `last`. */
  async function dev(context, last, ...args) {
    const folder = temporaryFolder("dev");
    const programs = join(folder, "node_modules", ".bin");
    mkdirSync(programs, { recursive: true });
    writeFileSync(join(programs, "workerd"), `#!/bin/sh\nexec "${workerdProgram}" "$@"\n`, { mode: 0o755 });
    writeFileSync(join(folder, "worker.js"), VISITS);
    const child = start(KVASAR, ["dev", "--rest", "127.0.0.1:0", ...LOCATIONS, ...args], { cwd: folder });
    context.after(async () => assert.equal(await stop(child), 0, child.output));
    await until(child, "starting kvasar dev", () => (last.test(child.output) ? true : undefined));
    return { child, folder };
  }

  test("what is printed for curl, wrangler and workerd works as it is", async (context) => {
    const { child, folder } = await dev(context, /workerd serve config\.capnp/);
    const exports = child.output.split("\n").filter((line) => line.trim().startsWith("export ")).map((line) => line.trim());
    const curls = child.output.split("\n").filter((line) => line.trim().startsWith("curl ")).map((line) => line.trim());
    const snippet = child.output.split("\n").find((line) => line.includes("kvasar workerd-config")).trim();
    assert.ok(exports.length >= 2 && curls.length === 2, child.output);
    for (const curl of curls) {
      const [, url, ...options] = await words(curl);
      const headers = options.filter((_, index) => options[index - 1] === "-H").map((field) => field.split(": "));
      const response = await fetch(url, { headers });
      assert.equal(response.status, 404, curl);
      assert.equal(response.headers.get("cf-cache-status"), "MISS", curl);
    }
    const listing = `${exports.join("\n")}\n"${KVASAR}" namespace list`;
    assert.match((await run("bash", ["-c", listing], { cwd: folder })).stdout, /default/);
    // The line starts workerd itself; here that is done in another way, so that it can be stopped by its id.
    const making = snippet.replace(/^kvasar/, `"${KVASAR}"`).replace(/ && .*/, "").replace("workerd-config", "workerd-config --worker worker.js --listen 127.0.0.1:0");
    const made = await run("bash", ["-c", `${exports.join("\n")}\n${making}`], { cwd: folder });
    assert.equal(made.code, 0, `${making}\n${made.stderr}`);
    const worker = await serve(join(folder, "config.capnp"), folder);
    context.after(() => worker.stop());
    assert.equal(await (await fetch(worker.url)).text(), "visit 1\n");
    assert.equal(await (await fetch(worker.url)).text(), "visit 2\n");
  });

  /** The words of a command as a shell takes them; there need not be a curl to run. */
  async function words(command) {
    const { stdout } = await run("bash", ["-c", `curl() { printf '%s\\n' "$@"; }\n${command}`]);
    return stdout.trimEnd().split("\n");
  }

  test("--worker runs the Worker at each location, on the same data", async (context) => {
    const { child } = await dev(context, /Worker at away listens on http/, "--worker", "worker.js");
    const [, home] = child.output.match(/Worker at home listens on (http:\S+)/);
    const [, away] = child.output.match(/Worker at away listens on (http:\S+)/);
    assert.equal(await (await fetch(home)).text(), "visit 1\n");
    assert.equal(await (await fetch(home)).text(), "visit 2\n");
    assert.equal(await (await fetch(away)).text(), "visit 3\n");
  });

  test("--production-limits refuses a second write to a key within a second, and no deletion", async (context) => {
    const server = await startDev("--production-limits");
    context.after(() => server.stop());
    const headers = { Authorization: `Bearer ${server.token}`, "kvasar-namespace": server.namespace };
    const put = (location, key) => exchange(server.bindings[location], "PUT", `/${key}`, { headers, body: "v" });
    assert.equal((await put("home", "often")).status, 200);
    const second = await put("home", "often");
    assert.deepEqual([second.status, second.reason], [429, "Too Many Requests"]);
    assert.equal((await put("home", "another")).status, 200);
    assert.equal((await exchange(server.bindings.home, "DELETE", "/another", { headers })).status, 200);
    const path = kvPath(server, `/${server.namespace}/values/through-rest`);
    assert.equal((await rest(server, "PUT", path, { body: "v" })).status, 200);
    const refused = await rest(server, "PUT", path, { body: "v" });
    assert.deepEqual([refused.status, refused.json.errors[0].code], [429, 10022]);
    assert.match(refused.headers.get("retry-after"), /^\d+$/);
    await new Promise((resolve) => setTimeout(resolve, 1100));
    assert.equal((await put("home", "often")).status, 200);
  });

  test("without workerd it says how to get it", async () => {
    const folder = temporaryFolder("dev");
    writeFileSync(join(folder, "worker.js"), VISITS);
    const env = { PATH: "/usr/bin:/bin" };
    const { code, stderr } = await run(KVASAR, ["dev", "--rest", "127.0.0.1:0", ...LOCATIONS, "--worker", "worker.js"], { cwd: folder, env });
    assert.equal(code, 1, stderr);
    assert.match(stderr, /npm install \S*\s*workerd/);
  });
});
