// Reading one key.

import { failure } from "../tools.mjs";

const OUT_OF_RANGE = "TypeError: Value out of range. Must be between -2147483648 and 2147483647 (inclusive).";

export const getCases = [
  {
    name: "get: a missing key is null in every type",
    run: async (kv) => [
      await kv.get("get/none"),
      await kv.get("get/none", "text"),
      await kv.get("get/none", "json"),
      await kv.get("get/none", "arrayBuffer"),
      await kv.get("get/none", "stream"),
      await kv.get("get/none", { cacheTtl: 30 }),
    ],
    expect: [null, null, null, null, null, null],
  },
  {
    name: "getWithMetadata: a missing key has a null value and null metadata",
    run: (kv) => kv.getWithMetadata("get/none"),
    expect: { value: null, metadata: null },
  },
  {
    name: "get: every type reads what was put",
    run: async (kv) => {
      await kv.put("get/types", '{"a":[1,null,"x"]}');
      return [
        await kv.get("get/types"),
        await kv.get("get/types", "text"),
        await kv.get("get/types", "json"),
        await kv.get("get/types", { type: "json" }),
        await kv.get("get/types", "arrayBuffer"),
        await kv.get("get/types", "stream"),
        await kv.get("get/types", {}),
      ];
    },
    expect: [
      '{"a":[1,null,"x"]}',
      '{"a":[1,null,"x"]}',
      { a: [1, null, "x"] },
      { a: [1, null, "x"] },
      { $bytes: "7b2261223a5b312c6e756c6c2c2278225d7d" },
      { $stream: '{"a":[1,null,"x"]}' },
      '{"a":[1,null,"x"]}',
    ],
  },
  {
    name: "getWithMetadata: every type reads value and metadata",
    run: async (kv) => {
      await kv.put("get/meta", "[1]", { metadata: { m: [true] } });
      return [
        await kv.getWithMetadata("get/meta"),
        await kv.getWithMetadata("get/meta", "json"),
        await kv.getWithMetadata("get/meta", { type: "arrayBuffer", cacheTtl: 60 }),
        await kv.getWithMetadata("get/meta", "stream"),
      ];
    },
    expect: [
      { value: "[1]", metadata: { m: [true] } },
      { value: [1], metadata: { m: [true] } },
      { value: { $bytes: "5b315d" }, metadata: { m: [true] } },
      { value: { $stream: "[1]" }, metadata: { m: [true] } },
    ],
  },
  {
    name: "get: an empty value is not a missing one",
    run: async (kv) => {
      await kv.put("get/empty", "");
      return [await kv.get("get/empty"), await kv.get("get/empty", "arrayBuffer"), await kv.getWithMetadata("get/empty")];
    },
    expect: ["", { $bytes: "" }, { value: "", metadata: null }],
  },
  {
    name: "get: text that isn't JSON fails to parse in the Worker",
    run: async (kv) => {
      await kv.put("get/bad-json", "not json");
      return failure(() => kv.get("get/bad-json", "json"));
    },
    expect: `SyntaxError: Unexpected token 'o', "not json" is not valid JSON`,
  },
  {
    name: "get: a value is bytes, and text is decoded with replacement",
    run: async (kv) => {
      await kv.put("get/bytes", new Uint8Array(256).map((_, index) => index));
      await kv.put("get/bad-utf8", new Uint8Array([0x61, 0xff, 0xfe, 0x62]));
      const all = new Uint8Array(await kv.get("get/bytes", "arrayBuffer"));
      return [all.length, all.every((byte, index) => byte === index), await kv.get("get/bad-utf8")];
    },
    expect: [256, true, "a\ufffd\ufffdb"],
  },
  {
    name: "get: cacheTtl of 30 and more is accepted, fractions are cut",
    run: async (kv) => {
      await kv.put("get/ttl", "v");
      return Promise.all([30, 30.9, 60, 3600, 2147483647].map((cacheTtl) => kv.get("get/ttl", { cacheTtl })));
    },
    expect: ["v", "v", "v", "v", "v"],
  },
  {
    name: "get: cacheTtl below 30 is refused with the product's text",
    run: (kv) => Promise.all([29, 29.9, 1, 0, -1, null, NaN, Infinity].map((cacheTtl) => failure(() => kv.get("get/ttl", { cacheTtl })))),
    expect: [29, 29, 1, 0, -1, 0, 0, 0].map((ttl) => `Error: KV GET failed: 400 Invalid cache_ttl of ${ttl}. Cache TTL must be at least 30.`),
  },
  {
    name: "getWithMetadata: cacheTtl below 30 is refused with the product's text",
    run: (kv) => failure(() => kv.getWithMetadata("get/ttl", { cacheTtl: 29 })),
    expect: "Error: KV GET failed: 400 Invalid cache_ttl of 29. Cache TTL must be at least 30.",
  },
  {
    name: "get: cacheTtl beyond 32 bits is refused by the runtime",
    run: (kv) => failure(() => kv.get("get/ttl", { cacheTtl: 2147483648 })),
    expect: OUT_OF_RANGE,
  },
  {
    name: "get: an unknown type fails for a present key only",
    run: async (kv) => {
      await kv.put("get/type", "v");
      return [await failure(() => kv.get("get/type", "blob")), await kv.get("get/no-type", "blob")];
    },
    expect: ['TypeError: Unknown response type. Possible types are "text", "arrayBuffer", "json", and "stream".', null],
  },
  {
    name: "get: without a key fails in the runtime",
    run: (kv) => failure(() => kv.get()),
    expect: "TypeError: Failed to execute 'get' on 'KvNamespace': parameter 1 is not of type 'string or Array'.",
  },
  {
    name: "get: a hundred reads of one key at once all see the value",
    run: async (kv) => {
      await kv.put("get/many", "same");
      const values = await Promise.all(Array.from({ length: 100 }, () => kv.get("get/many")));
      return values.every((value) => value === "same");
    },
    expect: true,
  },
  {
    name: "get: each of twenty writes in a row is read back at once where it was made",
    run: async (kv) => {
      const seen = [];
      for (let turn = 0; turn < 20; turn += 1) {
        await kv.put("get/own-write", `${turn}`);
        seen.push((await kv.get("get/own-write")) === `${turn}`);
      }
      return seen.every(Boolean);
    },
    expect: true,
  },
  {
    name: "get: a key read as missing is seen once it is written",
    run: async (kv) => {
      const before = await kv.get("get/absent-first");
      await kv.put("get/absent-first", "now");
      const between = await kv.get("get/absent-first");
      await kv.delete("get/absent-first");
      return [before, between, await kv.get("get/absent-first")];
    },
    expect: [null, "now", null],
  },
];
