// Writing and deleting one key.

import { VALUE_BYTES_MAX, failure, seconds, streamOfKnownLength, streamOfUnknownLength } from "../tools.mjs";

const OUT_OF_RANGE = "TypeError: Value out of range. Must be between -2147483648 and 2147483647 (inclusive).";
const NOT_A_VALUE = "TypeError: KV put() accepts only strings, ArrayBuffers, ArrayBufferViews, and ReadableStreams as values.";

/** The metadata that is read back after a put. */
async function metadataAfter(kv, key, metadata) {
  await kv.put(key, "v", { metadata });
  return (await kv.getWithMetadata(key)).metadata;
}

async function putStream(kv, key, { readable, written }) {
  const [put, wrote] = await Promise.allSettled([kv.put(key, readable), written]);
  if (put.status === "rejected") throw put.reason;
  if (wrote.status === "rejected") throw wrote.reason;
}

async function expiresIn(kv, key, options) {
  await kv.put(key, "v", options);
  const listed = (await kv.list({ prefix: key })).keys[0];
  return listed.expiration === undefined ? "never" : listed.expiration - seconds();
}

export const putCases = [
  {
    name: "put: every kind of value is stored as its bytes",
    run: async (kv) => {
      const buffer = new Uint8Array([1, 2, 3, 4, 5, 6]).buffer;
      const values = [
        "text é ☃ 𝄞",
        buffer,
        new Uint8Array(buffer, 1, 3),
        new DataView(buffer, 4, 2),
        new Uint16Array(buffer, 2, 1),
        new Response("a response's body").body,
        new Blob(["a blob's ", "stream"]).stream(),
        12,
        -1.5,
        true,
        null,
      ];
      await Promise.all(values.map((value, index) => kv.put(`put/kind/${index}`, value)));
      return Promise.all(values.map((_, index) => kv.get(`put/kind/${index}`, index > 0 && index < 5 ? "arrayBuffer" : "text")));
    },
    expect: [
      "text é ☃ 𝄞",
      { $bytes: "010203040506" },
      { $bytes: "020304" },
      { $bytes: "0506" },
      { $bytes: "0304" },
      "a response's body",
      "a blob's stream",
      "12",
      "-1.5",
      "true",
      "null",
    ],
  },
  {
    name: "put: returns undefined",
    run: (kv) => kv.put("put/returns", "v"),
    expect: { $: "undefined" },
  },
  {
    name: "put: streams of known and of unknown length, empty ones too, are stored whole",
    run: async (kv) => {
      const lengths = [0, 1, 65_536, 65_537, 1_000_000];
      for (const length of lengths) {
        await putStream(kv, `put/stream/unknown/${length}`, streamOfUnknownLength(length));
        await putStream(kv, `put/stream/known/${length}`, streamOfKnownLength(length));
      }
      const read = async (key) => {
        const bytes = new Uint8Array(await kv.get(key, "arrayBuffer"));
        return bytes.every((byte) => byte === 0x61) ? bytes.length : "other bytes";
      };
      return Promise.all(lengths.map(async (length) => [await read(`put/stream/unknown/${length}`), await read(`put/stream/known/${length}`)]));
    },
    expect: [[0, 0], [1, 1], [65_536, 65_536], [65_537, 65_537], [1_000_000, 1_000_000]],
  },
  {
    name: "put: objects, arrays and nothing at all are refused by the runtime",
    run: (kv) => Promise.all([failure(() => kv.put("put/object", {})), failure(() => kv.put("put/array", [1])), failure(() => kv.put("put/none"))]),
    expect: [NOT_A_VALUE, NOT_A_VALUE, "TypeError: Failed to execute 'put' on 'KvNamespace': parameter 2 is not of type 'string or Object'."],
  },
  {
    name: "put: a lone surrogate in a value is kept as its three bytes",
    run: async (kv) => {
      await kv.put("put/surrogate", "a\ud800b");
      return kv.get("put/surrogate", "arrayBuffer");
    },
    expect: { $bytes: "61eda08062" },
  },
  {
    name: "put: the largest value is stored, from a buffer and from a stream, and read back whole",
    run: async (kv) => {
      const bytes = new Uint8Array(VALUE_BYTES_MAX).map((_, index) => index % 251);
      await kv.put("put/largest/buffer", bytes);
      await putStream(kv, "put/largest/stream", streamOfUnknownLength(VALUE_BYTES_MAX));
      const digest = async (data) => new Uint8Array(await crypto.subtle.digest("SHA-256", data)).toString();
      const written = await digest(bytes);
      const read = await digest(await kv.get("put/largest/buffer", "arrayBuffer"));
      const streamed = await kv.get("put/largest/stream", "arrayBuffer");
      await kv.delete("put/largest/buffer");
      await kv.delete("put/largest/stream");
      return [written === read, streamed.byteLength];
    },
    expect: [true, VALUE_BYTES_MAX],
  },
  {
    name: "put: one byte too many is refused with its length, and the old value stays",
    run: async (kv) => {
      await kv.put("put/too-large", "old", { metadata: "kept" });
      const known = await failure(() => putStream(kv, "put/too-large", streamOfKnownLength(VALUE_BYTES_MAX + 1)));
      const unknown = await failure(() => putStream(kv, "put/too-large", streamOfUnknownLength(VALUE_BYTES_MAX + 1)));
      const buffer = await failure(() => kv.put("put/too-large", new Uint8Array(VALUE_BYTES_MAX + 1)));
      return [known, unknown, buffer, await kv.getWithMetadata("put/too-large")];
    },
    expect: [
      "Error: KV PUT failed: 413 Value length of 26214401 exceeds limit of 26214400.",
      "Error: KV PUT failed: 413 Value length of 26214401 exceeds limit of 26214400.",
      "Error: KV PUT failed: 413 Value length of 26214401 exceeds limit of 26214400.",
      { value: "old", metadata: "kept" },
    ],
  },
  {
    name: "put: a far too long stream is read to its end, so that its true length is told",
    run: (kv) => failure(() => putStream(kv, "put/far-too-large", streamOfUnknownLength(31_000_000))),
    expect: "Error: KV PUT failed: 413 Value length of 31000000 exceeds limit of 26214400.",
  },
  {
    name: "put: metadata of every JSON type comes back as it was",
    run: async (kv) => {
      const values = [{ a: { b: [1, "x", null, true] } }, [], "text", "", "null", '{"a":1}', 0, -1.25, 1e21, true, false, {}];
      const read = [];
      for (const [index, value] of values.entries()) read.push(await metadataAfter(kv, `put/metadata/${index}`, value));
      return read;
    },
    expect: [{ a: { b: [1, "x", null, true] } }, [], "text", "", "null", '{"a":1}', 0, -1.25, 1e21, true, false, {}],
  },
  {
    name: "put: null and undefined are no metadata",
    run: async (kv) => [await metadataAfter(kv, "put/no-metadata/0", null), await metadataAfter(kv, "put/no-metadata/1", undefined)],
    expect: [null, null],
  },
  {
    name: "put: metadata in raw UTF-8, with escapes and with line ends comes back as it was",
    run: async (kv) => {
      const value = { naïve: "☃ 𝄞 日本", lines: "a\nb\r\tc", nul: "\0", surrogate: "\ud800", quote: '"\\' };
      const read = await metadataAfter(kv, "put/metadata/unicode", value);
      return [JSON.stringify(read) === JSON.stringify(value), read];
    },
    expect: [true, { naïve: "☃ 𝄞 日本", lines: "a\nb\r\tc", nul: "\0", surrogate: "\ud800", quote: '"\\' }],
  },
  {
    name: "put: metadata holding DEL, which travels raw in a header, comes back as it was",
    run: (kv) => metadataAfter(kv, "put/metadata/delete-character", "a\x7fb"),
    expect: "a\x7fb",
  },
  {
    name: "put: metadata of 1024 bytes is stored, of 1025 refused with its length",
    run: async (kv) => {
      await kv.put("put/metadata/size", "v", { metadata: "x".repeat(1022) });
      const stored = (await kv.getWithMetadata("put/metadata/size")).metadata.length;
      const refused = [];
      for (const size of [1023, 5000, 12_000]) refused.push(await failure(() => kv.put("put/metadata/size", "new", { metadata: "x".repeat(size) })));
      return [stored, refused, await kv.get("put/metadata/size")];
    },
    expect: [1022, [1025, 5002, 12_002].map((length) => `Error: KV PUT failed: 413 Metadata length of ${length} exceeds limit of 1024.`), "v"],
  },
  {
    name: "put: the limit on metadata counts bytes, not characters",
    run: async (kv) => {
      const atLimit = await failure(() => kv.put("put/metadata/bytes", "v", { metadata: "é".repeat(511) }));
      const above = await failure(() => kv.put("put/metadata/bytes", "v", { metadata: "é".repeat(512) }));
      return [atLimit, above];
    },
    expect: [{ "did not fail, but returned": { $: "undefined" } }, "Error: KV PUT failed: 413 Metadata length of 1026 exceeds limit of 1024."],
  },
  {
    name: "put: expirationTtl and expiration set when a key expires, and the first wins",
    run: async (kv) => {
      const near = (left, wanted) => Math.abs(left - wanted) <= 2;
      return [
        near(await expiresIn(kv, "put/expires/ttl", { expirationTtl: 60 }), 60),
        near(await expiresIn(kv, "put/expires/fraction", { expirationTtl: 100.9 }), 100),
        near(await expiresIn(kv, "put/expires/at", { expiration: seconds() + 1000 }), 1000),
        near(await expiresIn(kv, "put/expires/both", { expiration: seconds() + 1000, expirationTtl: 500 }), 500),
        near(await expiresIn(kv, "put/expires/second-ignored", { expiration: 1, expirationTtl: 500 }), 500),
        await expiresIn(kv, "put/expires/never", {}),
      ];
    },
    expect: [true, true, true, true, true, "never"],
  },
  {
    name: "put: expirationTtl below 60 is refused with the product's text",
    run: (kv) => Promise.all([59, 59.9, 1, 0, -1, null, NaN].map((expirationTtl) => failure(() => kv.put("put/ttl", "v", { expirationTtl })))),
    expect: [
      "Error: KV PUT failed: 400 Invalid expiration_ttl of 59. Expiration TTL must be at least 60.",
      "Error: KV PUT failed: 400 Invalid expiration_ttl of 59. Expiration TTL must be at least 60.",
      "Error: KV PUT failed: 400 Invalid expiration_ttl of 1. Expiration TTL must be at least 60.",
      "Error: KV PUT failed: 400 Invalid expiration_ttl of 0. Please specify integer greater than 0.",
      "Error: KV PUT failed: 400 Invalid expiration_ttl of -1. Please specify integer greater than 0.",
      "Error: KV PUT failed: 400 Invalid expiration_ttl of 0. Please specify integer greater than 0.",
      "Error: KV PUT failed: 400 Invalid expiration_ttl of 0. Please specify integer greater than 0.",
    ],
  },
  {
    name: "put: an expiration in the past is refused with the product's text",
    run: (kv) => Promise.all([1, 0, -5, null].map((expiration) => failure(() => kv.put("put/past", "v", { expiration })))),
    expect: [1, 0, -5, 0].map(
      (at) => `Error: KV PUT failed: 400 Invalid expiration of ${at}. Please specify integer greater than the current number of seconds since the UNIX epoch.`,
    ),
  },
  {
    name: "put: an expiration less than a minute ahead is refused with the product's text",
    run: async (kv) => {
      const at = seconds() + 30;
      return (await failure(() => kv.put("put/near", "v", { expiration: at }))).replace(`${at}`, "AT");
    },
    expect: "Error: KV PUT failed: 400 Invalid expiration of AT. Expiration times must be at least 60 seconds in the future.",
  },
  {
    name: "put: expirations beyond 32 bits are refused by the runtime",
    run: async (kv) => [
      await failure(() => kv.put("put/far", "v", { expiration: 2147483648 })),
      await failure(() => kv.put("put/far", "v", { expirationTtl: 2147483648 })),
      await kv.get("put/far"),
    ],
    expect: [OUT_OF_RANGE, OUT_OF_RANGE, null],
  },
  {
    name: "put: overwriting replaces value, metadata and expiration together",
    run: async (kv) => {
      await kv.put("put/overwrite", "old", { metadata: { old: true }, expirationTtl: 600 });
      await kv.put("put/overwrite", "new");
      return [await kv.getWithMetadata("put/overwrite"), (await kv.list({ prefix: "put/overwrite" })).keys];
    },
    expect: [{ value: "new", metadata: null }, [{ name: "put/overwrite" }]],
  },
  {
    name: "put: a small value replaces a large one, and a large one a small one",
    run: async (kv) => {
      const lengths = [];
      for (const length of [3_000_000, 5, 200_000, 0, 70_000]) {
        await kv.put("put/sizes", "x".repeat(length));
        lengths.push((await kv.get("put/sizes")).length);
      }
      return lengths;
    },
    expect: [3_000_000, 5, 200_000, 0, 70_000],
  },
  {
    name: "put: of writes to one key at once exactly one remains, whole",
    run: async (kv) => {
      await Promise.all(Array.from({ length: 32 }, (_, index) => kv.put("put/race", `${index}`.repeat(1000), { metadata: index })));
      const { value, metadata } = await kv.getWithMetadata("put/race");
      return [value === `${metadata}`.repeat(1000), (await kv.list({ prefix: "put/race" })).keys.length];
    },
    expect: [true, 1],
  },
  {
    name: "delete: removes a key with its metadata, and a missing key is no error",
    run: async (kv) => {
      await kv.put("put/delete", "v", { metadata: 1 });
      const returned = await kv.delete("put/delete");
      await kv.delete("put/delete");
      await kv.delete("put/never-there");
      return [returned, await kv.getWithMetadata("put/delete"), (await kv.list({ prefix: "put/delete" })).keys];
    },
    expect: [{ $: "undefined" }, { value: null, metadata: null }, []],
  },
  {
    name: "put: the binding can't be cloned",
    run: (kv) => failure(async () => structuredClone(kv)),
    expect: "DataCloneError: A KV namespace binding cannot be serialized.",
  },
];
