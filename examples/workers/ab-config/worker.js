// A/B configuration as JSON: which variant of an experiment a visitor sees.
//
// An experiment is one key, `experiment:<name>`, with JSON such as {"variants": {"blue": 80, "green": 20}}: weights, in any unit. A visitor keeps
// a variant by a cookie, and for whom there is none the weights decide. Changing the key changes the split, everywhere, with no deploy.
// Reads are hot, so they cost next to nothing at a location; `cacheTtl` says how long a change may take to be seen.
//
//   GET /?experiment=button        {"variant": "blue"}, and a cookie
//   PUT /?experiment=button        stores the experiment, after a check
//
// Run it with: kvasar dev --worker examples/workers/ab-config/worker.js

const CACHE_TTL_SECONDS = 30;

export default {
  async fetch(request, env) {
    const name = new URL(request.url).searchParams.get("experiment");
    if (!name) return new Response("name an experiment: /?experiment=button\n", { status: 400 });
    return request.method === "PUT" ? configure(env.KV, name, request) : choose(env.KV, name, request);
  },
};

async function choose(kv, name, request) {
  const experiment = await kv.get(`experiment:${name}`, { type: "json", cacheTtl: CACHE_TTL_SECONDS });
  if (experiment === null) return Response.json({ variant: null });
  const cookie = `ab-${encodeURIComponent(name)}`;
  const kept = cookies(request).get(cookie);
  const variant = kept !== undefined && Object.hasOwn(experiment.variants, kept) ? kept : draw(experiment.variants);
  const headers = { "set-cookie": `${cookie}=${encodeURIComponent(variant)}; Path=/; Max-Age=2592000; SameSite=Lax` };
  return Response.json({ variant }, { headers });
}

async function configure(kv, name, request) {
  const experiment = await request.json().catch(() => null);
  const weights = Object.values(experiment?.variants ?? {});
  const good = weights.length > 0 && weights.every((weight) => Number.isFinite(weight) && weight >= 0) && weights.some((weight) => weight > 0);
  if (!good) return new Response('send {"variants": {"name": weight, ...}}, weights from 0 up and not all 0\n', { status: 400 });
  await kv.put(`experiment:${name}`, JSON.stringify({ variants: experiment.variants }));
  return new Response(null, { status: 204 });
}

/** One of the variants, by their weights. */
function draw(variants) {
  const entries = Object.entries(variants);
  let left = Math.random() * entries.reduce((sum, [, weight]) => sum + weight, 0);
  for (const [variant, weight] of entries) {
    left -= weight;
    if (left < 0) return variant;
  }
  return entries.findLast(([, weight]) => weight > 0)[0];
}

function cookies(request) {
  const pairs = (request.headers.get("cookie") ?? "").split(";").map((pair) => pair.trim().split("="));
  return new Map(pairs.filter(([name]) => name !== "").map(([name, ...value]) => [name, decode(value.join("="))]));
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // Somebody else's cookie.
  }
}
