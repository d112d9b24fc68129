// Which keys there are, and how they travel.

import { failure } from "../tools.mjs";

/** Keys that need care somewhere on the way: in a path, in a query, in JSON, in a header, in a sorted store. */
const oddKeys = [
  "@[]^_|~!$&'()*+,-.:;=",
  "\"#%<>?\\`{}/",
  " ",
  " both ends ",
  "a b+c",
  "a%20b",
  "%2F",
  "%",
  "%zz",
  "/",
  "//",
  "/leading",
  "trailing/",
  "a/b/c",
  "a/../b",
  "../up",
  "./here",
  "...",
  "bulk/get",
  "bulk/get/",
  "key?urlencoded=true",
  "key#fragment",
  "null",
  "undefined",
  "0",
  "constructor",
  "__proto__",
  "é",
  "e\u0301",
  "日本語/キー",
  "😀",
  "\uffff",
  "\u{10ffff}",
  "\u00a0",
  "\u2028",
  "\0",
  "a\0b",
  "\t\r\n",
  Array.from({ length: 31 }, (_, index) => String.fromCharCode(index + 1)).join(""),
  "\x7f",
  "x".repeat(508),
];

export const keyCases = [
  {
    name: "keys: every odd key is put, read, listed, read in bulk and deleted as itself",
    run: async (kv) => {
      const wrong = [];
      const check = (ok, what, key) => ok || wrong.push(`${what} ${JSON.stringify(key)}`);
      const keys = oddKeys.map((key) => `odd${key}`.slice(0, 512));
      await Promise.all(keys.map((key, index) => kv.put(key, `value of ${key}`, { metadata: { index } })));
      for (const [index, key] of keys.entries()) {
        const { value, metadata } = await kv.getWithMetadata(key);
        check(value === `value of ${key}` && metadata?.index === index, "get", key);
      }
      const listed = (await kv.list({ prefix: "odd" })).keys;
      check(listed.length === keys.length, "number listed", listed.length);
      for (const [index, key] of keys.entries()) check(listed.some((found) => found.name === key && found.metadata.index === index), "list", key);
      const bulk = await kv.get(keys);
      for (const key of keys) check(bulk.get(key) === `value of ${key}`, "bulk get", key);
      await Promise.all(keys.map((key) => kv.delete(key)));
      for (const key of keys) check((await kv.get(key)) === null, "delete", key);
      return wrong;
    },
    expect: [],
  },
  {
    name: "keys: a prefix of odd characters finds its keys",
    run: async (kv) => {
      const prefixes = ["prefix a b+c/", "prefix%41&=", "prefix\"#?", "prefix日本", "prefix\t\n"];
      await Promise.all(prefixes.map((prefix) => kv.put(`${prefix}key`, "v")));
      return Promise.all(prefixes.map(async (prefix) => (await kv.list({ prefix })).keys.map((key) => key.name === `${prefix}key`)));
    },
    expect: [[true], [true], [true], [true], [true]],
  },
  {
    name: "keys: a prefix holding NUL finds its keys",
    run: async (kv) => {
      await kv.put("nul\0key", "v");
      return (await kv.list({ prefix: "nul\0" })).keys.length;
    },
    expect: 1,
    differs: { reference: { expect: 0, why: "the reference's SQL stops at the NUL; keys are bytes" } },
  },
  {
    name: "keys: the same key in both spellings, of GET and of DELETE, is one key",
    run: async (kv) => {
      const key = "spelling@[]^|$&+,:;=";
      await kv.put(key, "v");
      await kv.delete(key);
      return kv.get(key);
    },
    expect: null,
  },
  {
    name: "keys: forms of one character are different keys",
    run: async (kv) => {
      await kv.put("form/é", "composed");
      await kv.put("form/e\u0301", "decomposed");
      return [await kv.get("form/é"), await kv.get("form/e\u0301"), (await kv.list({ prefix: "form/" })).keys.length];
    },
    expect: ["composed", "decomposed", 2],
  },
  {
    name: "keys: the empty key and the dots are refused by the runtime",
    run: (kv) => {
      const calls = [(key) => kv.get(key), (key) => kv.put(key, "v"), (key) => kv.delete(key)];
      return Promise.all(["", ".", ".."].map((key) => Promise.all(calls.map((call) => failure(() => call(key))))));
    },
    expect: [
      Array(3).fill("TypeError: Key name cannot be empty."),
      Array(3).fill('TypeError: "." is not allowed as a key name.'),
      Array(3).fill('TypeError: ".." is not allowed as a key name.'),
    ],
  },
  {
    name: "keys: 512 bytes are a key, 513 are not",
    run: async (kv) => {
      const longest = ["k".repeat(512), "é".repeat(256), "😀".repeat(128)];
      for (const key of longest) await kv.put(key, "v");
      const read = await Promise.all(longest.map((key) => kv.get(key)));
      for (const key of longest) await kv.delete(key);
      const tooLong = "é".repeat(256) + "k";
      return [read, await failure(() => kv.get(tooLong)), await failure(() => kv.put(tooLong, "v")), await failure(() => kv.delete(tooLong))];
    },
    expect: [
      ["v", "v", "v"],
      "Error: KV GET failed: 414 UTF-8 encoded length of 513 exceeds key length limit of 512.",
      "Error: KV PUT failed: 414 UTF-8 encoded length of 513 exceeds key length limit of 512.",
      "Error: KV DELETE failed: 414 UTF-8 encoded length of 513 exceeds key length limit of 512.",
    ],
  },
  {
    name: "keys: a lone surrogate can't be a key",
    run: (kv) => Promise.all([failure(() => kv.get("k\ud800")), failure(() => kv.put("k\udc00", "v")), failure(() => kv.delete("k\ud800"))]),
    expect: ["GET", "PUT", "DELETE"].map((method) => `Error: KV ${method} failed: 400 Could not URL-decode key name`),
  },
];
