// The routing table of a reverse proxy: which back end serves which path of which host.
//
// A route is a key, `route:<host><path prefix>`, whose value is the back end's origin, such as `http://10.0.0.7:8080`. The longest prefix that has a route
// wins. All prefixes of a path are asked for in one bulk read, so a request costs one question however deep its path is; and each location
// answers it from its own memory.
//
//   GET /anything    goes to the back end of the longest route, or is 404
//
// Run it with: kvasar dev --worker examples/workers/routing/worker.js

/** KV reads at most 100 keys at once; no path of a real site is deeper. */
const PREFIXES_MAX = 100;

export default {
  async fetch(request, env) {
    const url = new URL(request.url);
    const host = request.headers.get("x-forwarded-host") ?? url.hostname;
    const keys = prefixes(url.pathname).map((prefix) => `route:${host}${prefix}`);
    const routes = await env.KV.get(keys.filter(fits), { cacheTtl: 60 });
    const backend = keys.map((key) => routes.get(key)).find((found) => found != null);
    if (backend === undefined) return new Response(`no route for ${host}${url.pathname}\n`, { status: 404 });

    const target = new URL(url.pathname + url.search, backend);
    const headers = new Headers(request.headers);
    headers.set("x-forwarded-host", host);
    return fetch(new Request(target, { method: request.method, headers, body: request.body, redirect: "manual" }));
  },
};

/** `/a/b/c` -> `/a/b/c`, `/a/b`, `/a`, `/`: longest first. */
function prefixes(pathname) {
  const parts = pathname.split("/").filter((part) => part !== "").slice(0, PREFIXES_MAX - 1);
  const longer = parts.map((_, at) => `/${parts.slice(0, parts.length - at).join("/")}`);
  return [...longer, "/"];
}

/** A key has at most 512 bytes; no route can be that long. */
function fits(key) {
  return new TextEncoder().encode(key).length <= 512;
}
