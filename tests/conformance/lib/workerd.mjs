// Workers in a real workerd, each with one KV binding.

import { copyFileSync, existsSync, mkdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { once } from "node:events";

import { start, stop, until } from "./process.mjs";
import { temporaryFolder } from "./temporary.mjs";

const require = createRequire(import.meta.url);

export const workerdVersion = require("workerd/package.json").version;

/** The program itself, not the script that starts it: so that its process id is the one to end. */
export const workerdProgram = require("workerd").default;

const COMPATIBILITY_DATE = "2026-10-01";

/**
 * Serves a Worker. `modules` are files, the first one the entry; their places relative to it are kept. Requests of the binding `KV` go to
 * `binding` with these headers.
 */
export async function startWorker({ modules, binding, token, namespace, variables = {} }) {
  const folder = temporaryFolder("workerd");
  const root = dirname(modules[0]);
  const names = modules.map((file) => file.slice(root.length + 1));
  for (const [index, name] of names.entries()) {
    mkdirSync(dirname(join(folder, name)), { recursive: true });
    copyFileSync(modules[index], join(folder, name));
  }
  const config = join(folder, "config.capnp");
  writeFileSync(config, configText({ names, binding, token, namespace, variables }));
  return serve(config, folder);
}

/** Serves a config file, whose socket must be named `http`; its port is taken by the system if the file says 0. */
export async function serve(config, folder) {
  if (!existsSync(config)) throw new Error(`no config ${config}`);
  const args = ["serve", "--control-fd=3", config];
  const child = start(workerdProgram, args, { cwd: folder, stdio: ["ignore", "pipe", "pipe", "pipe"] });
  let control = "";
  child.stdio[3].on("data", (chunk) => (control += chunk));
  const port = await until(child, `starting workerd with ${config}`, () => {
    const line = control.split("\n").find((text) => text.includes('"listen"'));
    return line === undefined ? undefined : JSON.parse(line).port;
  });
  return {
    url: `http://127.0.0.1:${port}`,
    child,
    async stop() {
      const closed = once(child.stdio[3], "close");
      await stop(child);
      await closed;
    },
  };
}

function configText({ names, binding, token, namespace, variables }) {
  const text = JSON.stringify; // Cap'n Proto reads the escapes of JSON that occur here.
  const modules = names.map((name) => `(name = ${text(name)}, esModule = embed ${text(name)})`);
  const extra = Object.entries(variables).map(([name, value]) => `(name = ${text(name)}, json = ${text(JSON.stringify(value))})`);
  const bindings = ['(name = "KV", kvNamespace = "kv")', ...extra];
  const headers = [["Authorization", `Bearer ${token}`], ["kvasar-namespace", namespace]];
  const injected = headers.map(([name, value]) => `(name = ${text(name)}, value = ${text(value)})`);
  return `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    (name = "main", worker = (
      compatibilityDate = "${COMPATIBILITY_DATE}",
      modules = [${modules.join(", ")}],
      bindings = [${bindings.join(", ")}],
    )),
    (name = "kv", external = (
      address = ${text(binding)},
      http = (style = host, injectRequestHeaders = [${injected.join(", ")}]),
    )),
  ],
  sockets = [(name = "http", address = "127.0.0.1:0", http = (), service = "main")],
);
`;
}
