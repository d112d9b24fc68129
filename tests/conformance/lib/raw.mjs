// HTTP by hand: bytes out, bytes in, so that a test can say what no client would.

import { connect } from "node:net";

const PATIENCE_MS = 15_000;

/** A connection to `host:port`, or to a URL's. */
export async function open(address) {
  const { hostname, port } = new URL(address.includes("://") ? address : `http://${address}`);
  const socket = connect(Number(port), hostname);
  await new Promise((resolve, reject) => socket.once("connect", resolve).once("error", reject));
  return new Connection(socket);
}

class Connection {
  constructor(socket) {
    this.socket = socket;
    this.chunks = [];
    this.length = 0;
    /** How many bytes there must be before it is worth looking at them again. */
    this.wanted = 0;
    this.ended = false;
    this.wake = () => {};
    socket.on("data", (chunk) => {
      this.chunks.push(chunk);
      this.length += chunk.length;
      if (this.length >= this.wanted) this.wake();
    });
    // A reset is an end like any other here: what matters is what had arrived before.
    socket.on("error", () => {});
    socket.on("close", () => this.end());
    socket.on("end", () => this.end());
  }

  get received() {
    if (this.chunks.length !== 1) this.chunks = [Buffer.concat(this.chunks)];
    return this.chunks[0];
  }

  skip(length) {
    this.chunks = [this.received.subarray(length)];
    this.length -= length;
    this.wanted = 0;
  }

  end() {
    this.ended = true;
    this.wake();
  }

  send(...parts) {
    for (const part of parts) this.socket.write(part);
    return this;
  }

  /** Ends our side in order; the other side may still answer. */
  finish() {
    this.socket.end();
    return this;
  }

  /** Ends both sides without a word. */
  destroy() {
    this.socket.destroy();
  }

  async until(found, what) {
    const deadline = Date.now() + PATIENCE_MS;
    for (;;) {
      const value = found();
      if (value !== undefined) return value;
      const left = deadline - Date.now();
      if (left <= 0) throw new Error(`${what}: not within ${PATIENCE_MS} ms; received ${JSON.stringify(this.received.toString("latin1").slice(0, 500))}`);
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, left);
        this.wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  /** The next response; `method` decides whether it has a body. */
  async response(method = "GET") {
    const whole = () => {
      const found = parse(this.received, this.ended, method);
      this.wanted = found?.wanted ?? 0;
      return found?.response === undefined ? (this.ended ? null : undefined) : found;
    };
    const found = await this.until(whole, "waiting for a response");
    if (found === null) throw new Error(`the connection ended without a whole response: ${JSON.stringify(this.received.toString("latin1").slice(0, 500))}`);
    this.skip(found.length);
    return found.response;
  }

  /** Waits for the other side to end the connection; resolves to how long that took. */
  async closed() {
    const started = Date.now();
    await this.until(() => (this.ended ? true : undefined), "waiting for the end of the connection");
    return Date.now() - started;
  }
}

function parse(bytes, ended, method) {
  const end = bytes.indexOf("\r\n\r\n");
  if (end < 0) return undefined;
  const [line, ...fields] = bytes.subarray(0, end).toString("latin1").split("\r\n");
  const [, status, reason] = line.match(/^HTTP\/1\.[01] (\d{3}) ?(.*)$/) ?? [];
  if (status === undefined) throw new Error(`not a status line: ${line}`);
  const headers = new Map(fields.map((field) => [field.slice(0, field.indexOf(":")).toLowerCase(), field.slice(field.indexOf(":") + 1).trim()]));
  const head = { status: Number(status), reason, headers };
  const start = end + 4;
  const done = (length, body) => ({ length, response: { ...head, body, text: body.toString() } });
  if (method === "HEAD" || [204, 304].includes(head.status) || head.status < 200) return done(start, Buffer.alloc(0));
  if (headers.get("transfer-encoding") === "chunked") return chunked(bytes, start, done);
  if (headers.has("content-length")) {
    const length = start + Number(headers.get("content-length"));
    return bytes.length < length ? { wanted: length } : done(length, bytes.subarray(start, length));
  }
  return ended ? done(bytes.length, bytes.subarray(start)) : undefined;
}

function chunked(bytes, start, done) {
  const parts = [];
  for (let at = start; ; ) {
    const end = bytes.indexOf("\r\n", at);
    if (end < 0) return undefined;
    const size = Number.parseInt(bytes.subarray(at, end).toString("latin1"), 16);
    const next = end + 2 + size + 2;
    if (bytes.length < next) return undefined;
    if (size === 0) return done(next, Buffer.concat(parts));
    parts.push(bytes.subarray(end + 2, end + 2 + size));
    at = next;
  }
}

/** One request on a connection of its own; resolves to the response. */
export async function exchange(address, method, path, { headers = {}, body } = {}) {
  const connection = await open(address);
  const length = body === undefined ? {} : { "Content-Length": Buffer.byteLength(body) };
  connection.send(head(method, path, { ...length, ...headers }), body ?? "");
  const response = await connection.response(method);
  connection.destroy();
  return response;
}

/** The head of a request. */
export function head(method, path, headers) {
  const fields = Object.entries({ Host: "kvasar", ...headers }).map(([name, value]) => `${name}: ${value}\r\n`);
  return `${method} ${path} HTTP/1.1\r\n${fields.join("")}\r\n`;
}
