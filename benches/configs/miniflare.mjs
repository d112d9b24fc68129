// Miniflare with one Worker and one KV namespace, in memory: node miniflare.mjs PORT WORKER

import { readFileSync } from "node:fs";
import { Log, LogLevel, Miniflare } from "miniflare";

const [port, worker] = process.argv.slice(2);
const miniflare = new Miniflare({
  modules: true,
  script: readFileSync(worker, "utf8"),
  kvNamespaces: ["KV"],
  compatibilityDate: "2025-09-01",
  host: "127.0.0.1",
  port: Number(port),
  log: new Log(LogLevel.ERROR),
});
await miniflare.ready;
for (const signal of ["SIGTERM", "SIGINT"]) {
  process.on(signal, async () => {
    await miniflare.dispose();
    process.exit(0);
  });
}
