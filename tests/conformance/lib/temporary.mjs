// Folders that go away with the test.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const folders = [];

export function temporaryFolder(name) {
  const folder = mkdtempSync(join(tmpdir(), `kvasar-${name}-`));
  folders.push(folder);
  return folder;
}

process.on("exit", () => {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
});
