// API keys checked before a request goes on: the gate in front of an API.
//
// A key is kept by its SHA-256 alone, so that whoever reads the namespace learns no key. Under it lies who has it and what for:
// `key:<hash>` -> {"owner": "ada", "scopes": ["read"]}. A key that is deleted stops working at every location within `cacheTtl`; one that never
// existed is remembered as missing for as long, so that guessing costs the centre next to nothing.
//
//   GET  /...            with `Authorization: Bearer <key>`; needs the scope `read`
//   POST /...            needs the scope `write`
//
// Run it with: kvasar dev --worker examples/workers/api-keys/worker.js

const CACHE_TTL_SECONDS = 60;

export default {
  async fetch(request, env) {
    const key = request.headers.get("authorization")?.match(/^Bearer (\S+)$/i)?.[1];
    if (key === undefined) return refuse(401, "send Authorization: Bearer <key>");

    const grant = await env.KV.get(`key:${await sha256(key)}`, { type: "json", cacheTtl: CACHE_TTL_SECONDS });
    if (grant === null) return refuse(401, "this key is not known");

    const needed = request.method === "GET" || request.method === "HEAD" ? "read" : "write";
    if (!grant.scopes?.includes(needed)) return refuse(403, `this key may not ${needed}`);
    return forward(request, grant);
  },
};

/** What stands behind the gate. Here it only says who came; put a fetch to your API in its place. */
async function forward(request, grant) {
  const headers = new Headers(request.headers);
  headers.delete("authorization");
  headers.set("x-owner", grant.owner);
  return Response.json({ owner: headers.get("x-owner"), path: new URL(request.url).pathname });
}

function refuse(status, why) {
  const headers = status === 401 ? { "www-authenticate": "Bearer" } : {};
  return Response.json({ error: why }, { status, headers });
}

async function sha256(text) {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
