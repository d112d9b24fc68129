// A Worker that does one call of its binding `KV` per request, and answers with what came of it, as JSON.

export default {
  async fetch(request, env) {
    const { method, args } = await request.json();
    try {
      const value = await env.KV[method](...args);
      return Response.json(value instanceof Map ? [...value] : (value ?? null));
    } catch (error) {
      return Response.json(`${error}`);
    }
  },
};
