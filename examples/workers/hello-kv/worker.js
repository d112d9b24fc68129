// Hello, KV: store, read, list and delete, over plain HTTP.
//
//   PUT    /notes/<key>?ttl=3600   stores the body; it expires after `ttl` seconds, if one is given
//   GET    /notes/<key>            reads it back
//   GET    /notes?prefix=a         lists the keys, a page at a time
//   DELETE /notes/<key>            deletes it
//
// Run it with: kvasar dev --worker examples/workers/hello-kv/worker.js

export default {
  async fetch(request, env) {
    const url = new URL(request.url);
    if (url.pathname === "/notes" && request.method === "GET") return list(env.KV, url.searchParams);
    if (!url.pathname.startsWith("/notes/")) return new Response("there are only notes here\n", { status: 404 });

    const key = decodeURIComponent(url.pathname.slice("/notes/".length));
    if (key === "") return new Response("a note needs a name\n", { status: 400 });
    switch (request.method) {
      case "PUT":
        return put(env.KV, key, request, url.searchParams.get("ttl"));
      case "GET":
        return get(env.KV, key);
      case "DELETE":
        await env.KV.delete(key);
        return new Response(null, { status: 204 });
      default:
        return new Response(null, { status: 405, headers: { Allow: "GET, PUT, DELETE" } });
    }
  },
};

async function put(kv, key, request, ttl) {
  // Metadata travels with the key, also in listings: a good place for what a list should show.
  const metadata = { type: request.headers.get("content-type"), writtenAt: new Date().toISOString() };
  const expirationTtl = ttl === null ? undefined : Number(ttl);
  try {
    // A stream of known length goes to the store as it comes; nothing here holds the whole of it.
    await kv.put(key, request.body ?? "", { metadata, expirationTtl });
  } catch (error) {
    // What KV refuses (a time to live under 60 seconds, a value over 25 MiB) it explains in the message.
    return new Response(`${error.message}\n`, { status: 400 });
  }
  return new Response(null, { status: 201 });
}

async function get(kv, key) {
  const { value, metadata, cacheStatus } = await kv.getWithMetadata(key, "stream");
  if (value === null) return new Response("no such note\n", { status: 404 });
  const headers = { "content-type": metadata?.type ?? "application/octet-stream", "x-cache": cacheStatus ?? "none" };
  return new Response(value, { headers });
}

async function list(kv, query) {
  const page = await kv.list({
    prefix: query.get("prefix") ?? undefined,
    cursor: query.get("cursor") ?? undefined,
    limit: query.has("limit") ? Number(query.get("limit")) : undefined,
  });
  // A page may be short, or empty, and still not be the last: only `list_complete` says so.
  const keys = page.keys.map(({ name, expiration, metadata }) => ({ name, expiration, writtenAt: metadata?.writtenAt }));
  return Response.json({ keys, next: page.list_complete ? null : page.cursor });
}
