// Read your own writes, at whichever location you land: a visitor's session remembers the version of its last write, and each read says that it must
// cover it. Who has written nothing lately is answered from the location's memory, as ever.
//
//   PUT  /cart/<name>    the body is the cart; answers with a cookie that names the write
//   GET  /cart/<name>    with that cookie: this cart or a later one; with `?latest`, the very latest
//
// A KV binding sends no headers, so these requests go to the location by `KV_HTTP`, which `kvasar workerd-config` sets up beside each binding.
//
// Run it with: kvasar dev --worker examples/workers/sessions/worker.js

export default {
  async fetch(request, env) {
    const { pathname, searchParams } = new URL(request.url);
    const name = pathname.match(/^\/cart\/([^/]+)$/)?.[1];
    if (name === undefined) return new Response("GET or PUT /cart/<name>\n", { status: 404 });
    const cart = `http://kv/cart%3A${encodeURIComponent(decodeURIComponent(name))}?urlencoded=true`;

    if (request.method === "PUT") {
      const written = await env.KV_HTTP.fetch(cart, { method: "PUT", body: await request.arrayBuffer() });
      if (!written.ok) return new Response(`${written.statusText}\n`, { status: written.status });
      const version = written.headers.get("kvasar-version");
      return new Response(null, { status: 204, headers: { "set-cookie": `wrote=${version}; Path=/; HttpOnly` } });
    }

    const headers = {};
    const wrote = request.headers.get("cookie")?.match(/\bwrote=([0-9a-f]{16})\b/)?.[1];
    if (wrote !== undefined) headers["kvasar-at-least"] = wrote;
    if (searchParams.has("latest")) headers["kvasar-max-age-ms"] = "0";
    const found = await env.KV_HTTP.fetch(cart, { headers });
    // How old the answer may be, for people: it is an upper bound, counted from the origin.
    const age = { "x-age-ms": found.headers.get("kvasar-age-ms") ?? "", "x-cache": found.headers.get("cf-cache-status") ?? "" };
    return new Response(found.body, { status: found.status, headers: age });
  },
};
