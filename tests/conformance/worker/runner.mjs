// A Worker that runs one case of the suite per request, against the KV namespace bound to it as `KV`, and answers with what the case
// returned or threw, as JSON.

import { cases } from "./cases.mjs";

/** JSON for any value a case returns. `cacheStatus` differs between targets by design, so it is left out unless a case returns it by itself. */
async function encode(value) {
  if (value === undefined) return { $: "undefined" };
  if (value instanceof Error) return `${value}`;
  if (value instanceof ReadableStream) return { $stream: await new Response(value).text() };
  if (value instanceof ArrayBuffer) return { $bytes: hex(new Uint8Array(value)) };
  if (ArrayBuffer.isView(value)) return { $bytes: hex(new Uint8Array(value.buffer, value.byteOffset, value.byteLength)) };
  if (value instanceof Map) return { $map: await Promise.all([...value].map(async ([key, member]) => [key, await encode(member)])) };
  if (Array.isArray(value)) return Promise.all(value.map(encode));
  if (value !== null && typeof value === "object") {
    const members = Object.entries(value).filter(([name]) => name !== "cacheStatus");
    return Object.fromEntries(await Promise.all(members.map(async ([name, member]) => [name, await encode(member)])));
  }
  return value;
}

function hex(bytes) {
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export default {
  async fetch(request, env) {
    const name = decodeURIComponent(new URL(request.url).pathname.slice(1));
    const found = cases.find((candidate) => candidate.name === name);
    if (!found) return new Response(`no case is named ${JSON.stringify(name)}`, { status: 404 });
    try {
      return Response.json({ answer: await encode(await found.run(env.KV)) });
    } catch (error) {
      return Response.json({ threw: `${error}` });
    }
  },
};
