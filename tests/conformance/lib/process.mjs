// Child processes: started with a known end, ended by their own id, and never left behind.

import { spawn } from "node:child_process";

const running = new Set();

process.on("exit", () => {
  for (const child of running) child.kill("SIGKILL");
});

/** Starts a program that serves until it is stopped. What it prints is kept, for messages about failures. */
export function start(file, args, options = {}) {
  const child = spawn(file, args, { stdio: ["ignore", "pipe", "pipe"], ...options });
  running.add(child);
  child.output = "";
  const keep = (chunk) => (child.output = (child.output + chunk).slice(-20_000));
  child.stdout.on("data", keep);
  child.stderr.on("data", keep);
  child.ended = new Promise((resolve) => {
    child.on("error", (error) => resolve(`could not be started: ${error.message}`));
    child.on("exit", (code, signal) => {
      running.delete(child);
      resolve(signal ?? code);
    });
  });
  return child;
}

/** Asks a program to stop, and says with what it ended: an exit code, or a signal's name. */
export async function stop(child, signal = "SIGTERM", patienceMs = 20_000) {
  child.kill(signal);
  const timer = setTimeout(() => child.kill("SIGKILL"), patienceMs);
  const end = await child.ended;
  clearTimeout(timer);
  return end;
}

/** Waits for `ready` to return something, for as long as the child lives and patience lasts. */
export async function until(child, what, ready, patienceMs = 30_000) {
  const deadline = Date.now() + patienceMs;
  let end;
  child.ended.then((code) => (end = code));
  for (;;) {
    const found = await ready();
    if (found !== undefined) return found;
    if (end !== undefined) throw new Error(`${what}: it ended with ${end} first and printed:\n${child.output}`);
    if (Date.now() > deadline) throw new Error(`${what}: not within ${patienceMs} ms; it printed:\n${child.output}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Runs a program to its end; resolves to its exit code and what it printed, as bytes and as text. */
export function run(file, args, { input, timeoutMs = 120_000, ...options } = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(file, args, { stdio: ["pipe", "pipe", "pipe"], ...options });
    running.add(child);
    const out = [];
    const err = [];
    child.stdout.on("data", (chunk) => out.push(chunk));
    child.stderr.on("data", (chunk) => err.push(chunk));
    const timer = setTimeout(() => child.kill("SIGKILL"), timeoutMs);
    child.on("error", reject);
    child.on("close", (code, signal) => {
      running.delete(child);
      clearTimeout(timer);
      const bytes = Buffer.concat(out);
      resolve({ code: code ?? signal, bytes, stdout: bytes.toString(), stderr: Buffer.concat(err).toString() });
    });
    child.stdin.on("error", () => {}); // A program that ends without reading its input is judged by its exit code.
    child.stdin.end(input);
  });
}
