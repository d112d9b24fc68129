// Suites that are programs in another language. A program takes its server from the environment, and prints a line of JSON for each thing it
// has checked, `{"name", "error"?}`, and last `{"done": how many}`.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { run } from "./process.mjs";
import { startDev } from "./kvasar.mjs";

/** Runs programs one after the other against a server of their own, and reports what they checked. `programs`: title, file, arguments. */
export async function programSuites(programs) {
  const server = await startDev();
  const env = { ...process.env, KVASAR_TEST_BASE_URL: server.rest, KVASAR_TEST_ACCOUNT: server.account, KVASAR_TEST_TOKEN: server.token };
  const results = [];
  for (const { title, file, args = [] } of programs) results.push({ title, ...(await run(file, args, { env, timeoutMs: 170_000 })) });
  await server.stop();
  for (const result of results) report(result);
}

function report({ title, code, stdout, stderr }) {
  const lines = stdout.split("\n").filter((line) => line.startsWith("{")).map((line) => JSON.parse(line));
  const checks = lines.filter((line) => line.name !== undefined);
  describe(title, () => {
    for (const { name, error } of checks) {
      test(name, () => assert.equal(error ?? null, null));
    }
    test("runs to its end", () => {
      assert.deepEqual(lines.at(-1), { done: checks.length }, `ended with ${code}:\n${stderr}`);
      assert.ok(checks.length > 0);
    });
  });
}
