// Listing.

import { failure, seconds } from "../tools.mjs";

/** All names under a prefix, page by page, with how many each page held. */
async function listAll(kv, options) {
  const names = [];
  const pages = [];
  let cursor;
  for (;;) {
    const page = await kv.list({ ...options, cursor });
    pages.push(page.keys.length);
    names.push(...page.keys.map((key) => key.name));
    if (page.list_complete) return { names, pages, lastCursor: page.cursor };
    cursor = page.cursor;
  }
}

async function putAll(kv, keys) {
  for (let first = 0; first < keys.length; first += 100) {
    await Promise.all(keys.slice(first, first + 100).map((key) => kv.put(key, "v")));
  }
}

const CURSORS = "the reference's cursor is the last key in base64, unchecked; ours is authenticated and tied to namespace and prefix";

export const listCases = [
  {
    name: "list: nothing under a prefix is an empty complete page without a cursor",
    run: (kv) => kv.list({ prefix: "list/none/" }),
    expect: { keys: [], list_complete: true },
  },
  {
    name: "list: 2,500 keys come in pages of a thousand, in order, each once",
    run: async (kv) => {
      const keys = Array.from({ length: 2500 }, (_, index) => `list/many/${String(index).padStart(4, "0")}`);
      await putAll(kv, keys);
      const { names, pages, lastCursor } = await listAll(kv, { prefix: "list/many/" });
      return [pages, names.length, names.every((name, index) => name === keys[index]), lastCursor];
    },
    expect: [[1000, 1000, 500], 2500, true, { $: "undefined" }],
  },
  {
    name: "list: a limit is kept, and the last full page is complete",
    run: async (kv) => {
      await putAll(kv, Array.from({ length: 6 }, (_, index) => `list/limit/${index}`));
      const paged = async (limit) => (await listAll(kv, { prefix: "list/limit/", limit })).pages;
      return [await paged(1), await paged(2), await paged(4), await paged(6), await paged(1000), await paged(2.9)];
    },
    expect: [[1, 1, 1, 1, 1, 1], [2, 2, 2], [4, 2], [6], [6], [2, 2, 2]],
  },
  {
    name: "list: a limit of zero, below or not a number means the default",
    run: async (kv) => {
      await putAll(kv, ["list/default/a", "list/default/b"]);
      return Promise.all([0, -1, null, NaN, undefined].map(async (limit) => (await kv.list({ prefix: "list/default/", limit })).keys.length));
    },
    expect: [2, 2, 2, 2, 2],
  },
  {
    name: "list: a limit above a thousand is refused with the product's text",
    run: (kv) => Promise.all([1001, 100_000].map((limit) => failure(() => kv.list({ limit })))),
    expect: [1001, 100_000].map((limit) => `Error: KV GET failed: 400 Invalid key_count_limit of ${limit}. Please specify an integer less than 1000.`),
  },
  {
    name: "list: a limit beyond 32 bits is refused by the runtime",
    run: (kv) => failure(() => kv.list({ limit: 2147483648 })),
    expect: "TypeError: Value out of range. Must be between -2147483648 and 2147483647 (inclusive).",
  },
  {
    name: "list: order is that of UTF-8 bytes",
    run: async (kv) => {
      const names = ["b", "a", "B", "aa", "a/", "é", "z", "\uffff", "\u{10000}", "\x7f", " ", "10", "9"];
      await putAll(kv, names.map((name) => `list/order/${name}`));
      return (await kv.list({ prefix: "list/order/" })).keys.map((key) => key.name.slice(11));
    },
    expect: [" ", "10", "9", "B", "a", "a/", "aa", "b", "z", "\x7f", "é", "\uffff", "\u{10000}"],
  },
  {
    name: "list: a prefix is exact, and a key equal to it counts",
    run: async (kv) => {
      await putAll(kv, ["list/pre", "list/pre/x", "list/prefix", "list/Pre", "list/pr"]);
      return (await kv.list({ prefix: "list/pre" })).keys.map((key) => key.name);
    },
    expect: ["list/pre", "list/pre/x", "list/prefix"],
  },
  {
    name: "list: metadata of every type and expirations are listed as they were put",
    run: async (kv) => {
      const values = [{ a: 1 }, "text", '{"a":1}', "", 0, false, ["x"], "☃", null];
      const at = seconds() + 1000;
      for (const [index, metadata] of values.entries()) await kv.put(`list/metadata/${index}`, "v", { metadata });
      await kv.put("list/metadata/expiring", "v", { expiration: at });
      const { keys } = await kv.list({ prefix: "list/metadata/" });
      const last = keys.at(-1);
      return [keys.slice(0, -1), last.name, last.expiration - at];
    },
    expect: [
      [
        { name: "list/metadata/0", metadata: { a: 1 } },
        { name: "list/metadata/1", metadata: "text" },
        { name: "list/metadata/2", metadata: '{"a":1}' },
        { name: "list/metadata/3", metadata: "" },
        { name: "list/metadata/4", metadata: 0 },
        { name: "list/metadata/5", metadata: false },
        { name: "list/metadata/6", metadata: ["x"] },
        { name: "list/metadata/7", metadata: "☃" },
        { name: "list/metadata/8" },
      ],
      "list/metadata/expiring",
      0,
    ],
  },
  {
    name: "list: an empty or null prefix and cursor are none",
    run: async (kv) => {
      await kv.put(" list-first", "v");
      const first = async (options) => (await kv.list({ limit: 1, ...options })).keys.length;
      return [await first({ prefix: "" }), await first({ prefix: null }), await first({ cursor: "" }), await first({ cursor: null }), (await kv.list(null)).keys.length > 0];
    },
    expect: [1, 1, 1, 1, true],
  },
  {
    name: "list: the longest prefix is 512 bytes",
    run: async (kv) => [(await kv.list({ prefix: "p".repeat(512) })).keys, await failure(() => kv.list({ prefix: "p".repeat(513) }))],
    expect: [[], "Error: KV GET failed: 414 UTF-8 encoded length of 513 exceeds key length limit of 512."],
  },
  {
    name: "list: a key written behind the cursor is still met",
    run: async (kv) => {
      await putAll(kv, ["list/behind/a", "list/behind/b", "list/behind/d"]);
      const first = await kv.list({ prefix: "list/behind/", limit: 2 });
      await kv.put("list/behind/c", "v");
      await kv.delete("list/behind/b");
      const rest = await kv.list({ prefix: "list/behind/", limit: 100, cursor: first.cursor });
      return [first.keys.map((key) => key.name), rest.keys.map((key) => key.name), rest.list_complete];
    },
    expect: [["list/behind/a", "list/behind/b"], ["list/behind/c", "list/behind/d"], true],
  },
  {
    name: "list: a made-up cursor is refused",
    run: async (kv) => (await failure(() => kv.list({ cursor: "bm90IGEgY3Vyc29y" }))).slice?.(0, 25),
    expect: "Error: KV GET failed: 400",
    differs: { reference: { expect: { $: "undefined" }, why: CURSORS } },
  },
  {
    name: "list: a cursor with one character changed is refused",
    run: async (kv) => {
      await putAll(kv, ["list/tamper/a", "list/tamper/b"]);
      const { cursor } = await kv.list({ prefix: "list/tamper/", limit: 1 });
      const at = Math.floor(cursor.length / 2);
      const changed = cursor.slice(0, at) + (cursor[at] === "A" ? "B" : "A") + cursor.slice(at + 1);
      return (await failure(() => kv.list({ prefix: "list/tamper/", cursor: changed }))).slice?.(0, 25);
    },
    expect: "Error: KV GET failed: 400",
    differs: { reference: { expect: { $: "undefined" }, why: CURSORS } },
  },
  {
    name: "list: a cursor of another prefix is refused",
    run: async (kv) => {
      await putAll(kv, ["list/other/a", "list/other/b"]);
      const { cursor } = await kv.list({ prefix: "list/other/", limit: 1 });
      return (await failure(() => kv.list({ prefix: "list/", cursor }))).slice?.(0, 25);
    },
    expect: "Error: KV GET failed: 400",
    differs: { reference: { expect: { $: "undefined" }, why: CURSORS } },
  },
];
