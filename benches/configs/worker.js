// The Worker of the measurement: one KV.get for each request, and a put to have something to get.

export default {
  async fetch(request, env) {
    const key = new URL(request.url).pathname.slice(1);
    if (request.method === "PUT") {
      await env.KV.put(key, await request.text());
      return new Response("", { status: 200 });
    }
    const value = await env.KV.get(key);
    return value === null ? new Response("", { status: 404 }) : new Response(value);
  },
};
