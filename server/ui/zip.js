// Zip files whose members are stored as they are: label files are small, so nothing is compressed.
// The numbers are those of PKWARE's APPNOTE.TXT, sections 4.3.7 (a file), 4.3.12 (directory), 4.3.16 (end).

const MAX_FILES = 0xffff; // more files, or 4 GiB, would need Zip64
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, crc) => {
  for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  return crc;
});

/**
 * Makes a zip file of texts; names and texts are written as UTF-8.
 *
 * @param {[string, string][]} files path and text of each, in the order of the archive; below 4 GiB together.
 * @returns {Blob}
 * @throws {RangeError} for more than 65,535 files.
 */
export function zip(files, modified = new Date()) {
  if (files.length > MAX_FILES) throw new RangeError(`${files.length} files in a zip; the limit is ${MAX_FILES}`);
  const encoder = new TextEncoder();
  const time = (modified.getHours() << 11) | (modified.getMinutes() << 5) | (modified.getSeconds() >> 1);
  const date = ((modified.getFullYear() - 1980) << 9) | ((modified.getMonth() + 1) << 5) | modified.getDate();
  const [parts, directory] = [[], []];
  let offset = 0;
  for (const [path, text] of files) {
    const [name, content] = [encoder.encode(path), encoder.encode(text)];
    // Version 2.0, names in UTF-8, stored; sizes compressed and not; no extra field.
    const about = [[2, 20], [2, 0x0800], [2, 0], [2, time], [2, date], [4, crc32(content)],
      [4, content.length], [4, content.length], [2, name.length], [2, 0]];
    const header = record([4, 0x04034b50], ...about);
    parts.push(header, name, content);
    // No comment, first disk, no attributes.
    directory.push(record([4, 0x02014b50], [2, 20], ...about, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]), name);
    offset += header.length + name.length + content.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const count = [2, files.length];
  const end = record([4, 0x06054b50], [2, 0], [2, 0], count, count, [4, size], [4, offset], [2, 0]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

function crc32(bytes) {
  return ~bytes.reduce((crc, byte) => CRC_TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8), 0xffffffff);
}

/** Little-endian bytes of [width in bytes, value] pairs. */
function record(...fields) {
  return Uint8Array.from(fields.flatMap(([width, value]) => Array.from({ length: width }, (_, i) => value >>> (8 * i))));
}
