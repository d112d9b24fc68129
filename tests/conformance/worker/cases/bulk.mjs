// Reading many keys at once.

import { failure } from "../tools.mjs";

const NOT_JSON = "Error: KV GET_BULK failed: 400 At least one of the requested keys corresponds to a non-json value";
const FALSY = "the reference drops the metadata of falsy values; later versions of it keep it";

export const bulkCases = [
  {
    name: "bulk get: present and missing keys, in the order asked for",
    run: async (kv) => {
      await kv.put("bulk/b", "B");
      await kv.put("bulk/a", "A", { metadata: { m: 1 } });
      return [
        await kv.get(["bulk/b", "bulk/none", "bulk/a"]),
        await kv.get(["bulk/a"], "text"),
        await kv.get(["bulk/a"], { type: "text", cacheTtl: 30 }),
        await kv.getWithMetadata(["bulk/a", "bulk/b", "bulk/none"]),
      ];
    },
    expect: [
      { $map: [["bulk/b", "B"], ["bulk/none", null], ["bulk/a", "A"]] },
      { $map: [["bulk/a", "A"]] },
      { $map: [["bulk/a", "A"]] },
      { $map: [["bulk/a", { value: "A", metadata: { m: 1 } }], ["bulk/b", { value: "B", metadata: null }], ["bulk/none", null]] },
    ],
  },
  {
    name: "bulk get: JSON values are parsed, with metadata too",
    run: async (kv) => {
      await kv.put("bulk/json/object", ' {"a":[1,2,{"b":null}]} ', { metadata: "m" });
      await kv.put("bulk/json/text", '"x\\u00e9"');
      await kv.put("bulk/json/number", "-1.5e3");
      await kv.put("bulk/json/large", "12345678901234567890");
      const keys = ["bulk/json/object", "bulk/json/text", "bulk/json/number", "bulk/json/large", "bulk/json/none"];
      return [await kv.get(keys, "json"), await kv.getWithMetadata(keys.slice(0, 2), { type: "json" })];
    },
    expect: [
      {
        $map: [
          ["bulk/json/object", { a: [1, 2, { b: null }] }],
          ["bulk/json/text", "xé"],
          ["bulk/json/number", -1500],
          ["bulk/json/large", 12345678901234567000],
          ["bulk/json/none", null],
        ],
      },
      {
        $map: [
          ["bulk/json/object", { value: { a: [1, 2, { b: null }] }, metadata: "m" }],
          ["bulk/json/text", { value: "xé", metadata: null }],
        ],
      },
    ],
  },
  {
    name: "bulk get: metadata is as it was put, not encoded twice",
    run: async (kv) => {
      const values = ["text", '{"a":1}', { a: '{"b":2}' }, [1], "☃"];
      for (const [index, metadata] of values.entries()) await kv.put(`bulk/metadata/${index}`, "v", { metadata });
      const read = await kv.getWithMetadata(values.map((_, index) => `bulk/metadata/${index}`));
      return [...read.values()].map((entry) => entry.metadata);
    },
    expect: ["text", '{"a":1}', { a: '{"b":2}' }, [1], "☃"],
  },
  {
    name: "bulk get: falsy values keep their metadata",
    run: async (kv) => {
      for (const [index, value] of ["", "0", "false"].entries()) await kv.put(`bulk/falsy/${index}`, value, { metadata: index + 1 });
      return [
        await kv.getWithMetadata(["bulk/falsy/0"]),
        await kv.getWithMetadata(["bulk/falsy/1", "bulk/falsy/2"], "json"),
      ];
    },
    expect: [
      { $map: [["bulk/falsy/0", { value: "", metadata: 1 }]] },
      { $map: [["bulk/falsy/1", { value: 0, metadata: 2 }], ["bulk/falsy/2", { value: false, metadata: 3 }]] },
    ],
    differs: {
      reference: { expect: [{ $map: [["bulk/falsy/0", ""]] }, { $map: [["bulk/falsy/1", 0], ["bulk/falsy/2", false]] }], why: FALSY },
    },
  },
  {
    name: "bulk get: a stored JSON null is a plain null",
    run: async (kv) => {
      await kv.put("bulk/null", "null", { metadata: 1 });
      return [await kv.get(["bulk/null"], "json"), await kv.getWithMetadata(["bulk/null"], "json"), await kv.get(["bulk/null"])];
    },
    expect: [{ $map: [["bulk/null", null]] }, { $map: [["bulk/null", null]] }, { $map: [["bulk/null", "null"]] }],
  },
  {
    name: "bulk get: a key asked for twice is there once",
    run: async (kv) => {
      await kv.put("bulk/twice", "v");
      return kv.get(["bulk/twice", "bulk/twice"]);
    },
    expect: { $map: [["bulk/twice", "v"]] },
  },
  {
    name: "bulk get: text is decoded with replacement",
    run: async (kv) => {
      await kv.put("bulk/bytes", new Uint8Array([0x61, 0xff, 0x62]));
      await kv.put("bulk/control", "\0\x01\x1f\x7f\u2028\"\\");
      return kv.get(["bulk/bytes", "bulk/control"]);
    },
    expect: { $map: [["bulk/bytes", "a\ufffdb"], ["bulk/control", "\0\x01\x1f\x7f\u2028\"\\"]] },
  },
  {
    name: "bulk get: JSON of great depth and with lone surrogates passes through",
    run: async (kv) => {
      await kv.put("bulk/deep", "[".repeat(700) + "]".repeat(700));
      await kv.put("bulk/surrogate", '"\\ud800"');
      const read = await kv.get(["bulk/deep", "bulk/surrogate"], "json");
      let depth = 0;
      for (let value = read.get("bulk/deep"); Array.isArray(value); value = value[0]) depth += 1;
      return [depth, read.get("bulk/surrogate") === "\ud800"];
    },
    expect: [700, true],
  },
  {
    name: "bulk get: a value that isn't JSON fails the whole request",
    run: async (kv) => {
      await kv.put("bulk/good", "1");
      await kv.put("bulk/bad", "{oops");
      await kv.put("bulk/empty", "");
      await kv.put("bulk/trailing", "1 2");
      const keys = ["bulk/bad", "bulk/empty", "bulk/trailing"];
      return Promise.all(keys.map((key) => failure(() => kv.get(["bulk/good", key], "json"))));
    },
    expect: [NOT_JSON, NOT_JSON, NOT_JSON],
  },
  {
    name: "bulk get: a hundred keys are read, a hundred and one refused",
    run: async (kv) => {
      const keys = Array.from({ length: 101 }, (_, index) => `bulk/hundred/${index}`);
      await Promise.all(keys.map((key) => kv.put(key, key)));
      const read = await kv.get(keys.slice(0, 100));
      return [keys.slice(0, 100).every((key) => read.get(key) === key), read.size, await failure(() => kv.get(keys))];
    },
    expect: [true, 100, "Error: KV GET_BULK failed: 400 You can request a maximum of 100 keys"],
  },
  {
    name: "bulk get: no keys are refused",
    run: (kv) => failure(() => kv.get([])),
    expect: "Error: KV GET_BULK failed: 400 You must request a minimum of 1 key",
  },
  {
    name: "bulk get: types other than text and json are refused",
    run: async (kv) => {
      await kv.put("bulk/type", "v");
      return Promise.all(["arrayBuffer", "stream", "blob"].map((type) => failure(() => kv.get(["bulk/type"], type))));
    },
    expect: ["arrayBuffer", "stream", "blob"].map((type) => `Error: KV GET_BULK failed: 400 "${type}" is not a valid type. Use "json" or "text"`),
  },
  {
    name: "bulk get: cacheTtl below 30 is refused with the product's text",
    run: (kv) => Promise.all([29, 0, -1].map((cacheTtl) => failure(() => kv.get(["bulk/a"], { cacheTtl })))),
    expect: [29, 0, -1].map((ttl) => `Error: KV GET_BULK failed: 400 Invalid cache_ttl of ${ttl}. Cache TTL must be at least 30.`),
  },
  {
    name: "bulk get: bad keys are refused by the service",
    run: (kv) => Promise.all([[""], ["bulk/a", "."], [".."], ["k".repeat(513)]].map((keys) => failure(() => kv.get(keys)))),
    expect: [
      "Error: KV GET_BULK failed: 400 Key names must not be empty",
      'Error: KV GET_BULK failed: 400 Illegal key name ".". Please use a different name.',
      'Error: KV GET_BULK failed: 400 Illegal key name "..". Please use a different name.',
      "Error: KV GET_BULK failed: 414 UTF-8 encoded length of 513 exceeds key length limit of 512.",
    ],
  },
  {
    name: "bulk get: more than 25 MiB in one reply is refused",
    run: async (kv) => {
      const keys = ["bulk/size/a", "bulk/size/b", "bulk/size/c"];
      for (const key of keys.slice(0, 2)) await kv.put(key, "x".repeat(13_107_200));
      await kv.put("bulk/size/c", "x");
      const atLimit = [...(await kv.get(keys.slice(0, 2))).values()].map((value) => value.length);
      const above = await failure(() => kv.get(keys));
      for (const key of keys) await kv.delete(key);
      return [atLimit, above];
    },
    expect: [[13_107_200, 13_107_200], "Error: KV GET_BULK failed: 413 Total size of request exceeds the limit of 25MB"],
  },
];
