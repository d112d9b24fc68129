// What several groups of cases use.

/** The text of the error with which a call must fail. */
export async function failure(call) {
  try {
    return { "did not fail, but returned": await call() };
  } catch (error) {
    return `${error}`;
  }
}

/** The current time in whole seconds since the UNIX epoch. */
export function seconds() {
  return Math.floor(Date.now() / 1000);
}

export const VALUE_BYTES_MAX = 26_214_400;

/** A stream of `length` bytes of 0x61 whose length the runtime can't know, so that it is sent chunked. */
export function streamOfUnknownLength(length) {
  const { readable, writable } = new TransformStream();
  return { readable, written: write(writable, length) };
}

/** A stream of `length` bytes of 0x61 whose length is sent ahead. */
export function streamOfKnownLength(length) {
  const { readable, writable } = new FixedLengthStream(length);
  return { readable, written: write(writable, length) };
}

async function write(writable, length) {
  const writer = writable.getWriter();
  const chunk = new Uint8Array(65_536).fill(0x61);
  for (let left = length; left > 0; left -= chunk.length) {
    await writer.write(left < chunk.length ? chunk.subarray(0, left) : chunk);
  }
  await writer.close();
}
