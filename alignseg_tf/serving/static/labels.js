// Names of classes in the ZIP archive at the end of a .tflite file, where TFLite keeps such files.

const END = 0x06054b50; // signature of the end of an archive
const ENTRY = 0x02014b50; // and of an entry of its directory
const END_LENGTH = 22;
const MAX_COMMENT = 0xffff;

/** Return {classes, palette}, or null where the file names none. bytes: a Uint8Array. */
export async function labelsIn(bytes) {
  const files = entries(bytes);
  if (files.has("classes.json")) {
    const content = JSON.parse(await text(bytes, files.get("classes.json")));
    const palette = content.palette ?? content.classes.map((_, id) => color(id));
    return { classes: content.classes, palette };
  }
  if (files.has("labels.txt")) {
    const lines = (await text(bytes, files.get("labels.txt"))).split(/\r?\n/);
    const classes = lines.filter((line) => line !== "");
    return { classes, palette: classes.map((_, id) => color(id)) };
  }
  return null;
}

/** A colour for a class that comes without one: neighbours differ in hue. */
function color(id) {
  const hue = (id * 137.5) % 360;
  const channel = (n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (0.5 - 0.4 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [channel(0), channel(8), channel(4)];
}

/** The archive's files: name -> {start, length, method}. */
function entries(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const found = new Map();
  const first = Math.max(0, bytes.length - END_LENGTH - MAX_COMMENT);
  let end = bytes.length - END_LENGTH;
  while (end >= first && view.getUint32(end, true) !== END) end--;
  if (end < first) return found;
  const size = view.getUint32(end + 12, true);
  let place = end - size;
  // Offsets count from the archive's start, which a model may lie before.
  const before = place - view.getUint32(end + 16, true);
  while (place + 46 <= end && view.getUint32(place, true) === ENTRY) {
    const nameLength = view.getUint16(place + 28, true);
    const name = new TextDecoder().decode(bytes.subarray(place + 46, place + 46 + nameLength));
    const local = before + view.getUint32(place + 42, true);
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    found.set(name, {
      start, length: view.getUint32(place + 20, true), method: view.getUint16(place + 10, true),
    });
    place += 46 + nameLength + view.getUint16(place + 30, true) + view.getUint16(place + 32, true);
  }
  return found;
}

async function text(bytes, { start, length, method }) {
  const packed = new Blob([bytes.subarray(start, start + length)]);
  if (method === 0) return packed.text();
  if (method !== 8) throw new Error(`expected a stored or deflated file. Received: method ${method}`);
  return new Response(packed.stream().pipeThrough(new DecompressionStream("deflate-raw"))).text();
}
