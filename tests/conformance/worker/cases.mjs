// Every case of the Worker-side suite. A case has
//   name     what it claims, unique;
//   run      a function of the binding, run inside workerd;
//   expect   what `run` must return (see `runner.mjs` for how values become JSON), or `{ threw: text }`;
//   differs  optional: what one target answers instead, and why that is intended.
// Cases run side by side in one namespace: each keeps to keys that begin with its own prefix.

import { bulkCases } from "./cases/bulk.mjs";
import { getCases } from "./cases/get.mjs";
import { keyCases } from "./cases/keys.mjs";
import { listCases } from "./cases/list.mjs";
import { putCases } from "./cases/put.mjs";

export const cases = [...getCases, ...putCases, ...keyCases, ...listCases, ...bulkCases];
