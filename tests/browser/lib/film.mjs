// A film whose every second has a grey of its own, made by the browser's encoder and put into WebM here, with an index, so
// that a player can go to any second of it.

const id = (number) => {
  const bytes = [];
  for (let n = number; n > 0; n = Math.floor(n / 256)) bytes.unshift(n % 256);
  return Buffer.from(bytes);
};

const size = (bytes) => {
  const out = Buffer.alloc(8);
  out.writeBigUInt64BE((1n << 56n) | BigInt(bytes));
  return out;
};

const element = (name, ...parts) => {
  const body = Buffer.concat(parts);
  return Buffer.concat([id(name), size(body.length), body]);
};

const number = (name, value) => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return element(name, bytes);
};

const text = (name, value) => element(name, Buffer.from(value));

const float = (name, value) => {
  const bytes = Buffer.alloc(8);
  bytes.writeDoubleBE(value);
  return element(name, bytes);
};

/** Frames of VP8 with noise in them: a cluster for each second, each beginning with a key frame. */
async function frames(page, seconds, perSecond, [width, height]) {
  return page.evaluate(async ([seconds, perSecond, width, height]) => {
    const out = [];
    const encoder = new VideoEncoder({
      output: (chunk) => {
        const bytes = new Uint8Array(chunk.byteLength);
        chunk.copyTo(bytes);
        let binary = "";
        for (let at = 0; at < bytes.length; at += 8192) binary += String.fromCharCode(...bytes.subarray(at, at + 8192));
        out.push({ ms: chunk.timestamp / 1000, key: chunk.type === "key", base64: btoa(binary) });
      },
      error: (error) => { throw error; },
    });
    encoder.configure({ codec: "vp8", width, height, bitrate: 3_000_000, framerate: perSecond });
    const canvas = new OffscreenCanvas(width, height);
    const pen = canvas.getContext("2d");
    const noise = pen.createImageData(width, height / 2);
    for (let n = 0; n < seconds * perSecond; n += 1) {
      const grey = 20 + Math.floor(n / perSecond) * 10;
      pen.fillStyle = `rgb(${grey} ${grey} ${grey})`;
      pen.fillRect(0, 0, width, height);
      for (let at = 0; at < noise.data.length; at += 65536) crypto.getRandomValues(noise.data.subarray(at, at + 65536));
      for (let at = 3; at < noise.data.length; at += 4) noise.data[at] = 255;
      pen.putImageData(noise, 0, height / 2);
      const frame = new VideoFrame(canvas, { timestamp: Math.round((n * 1e6) / perSecond) });
      encoder.encode(frame, { keyFrame: n % perSecond === 0 });
      frame.close();
      if (encoder.encodeQueueSize > 10) await encoder.flush();
    }
    await encoder.flush();
    return out;
  }, [seconds, perSecond, width, height]);
}

/** A film of so many seconds, some 2 MB each, and each lighter by the same. */
export async function film(page, seconds, perSecond = 5, [width, height] = [320, 240]) {
  const all = await frames(page, seconds, perSecond, [width, height]);
  const info = element(0x1549a966, number(0x2ad7b1, 1_000_000), float(0x4489, seconds * 1000), text(0x4d80, "grove"), text(0x5741, "grove"));
  const track = element(0x1654ae6b, element(0xae, number(0xd7, 1), number(0x73c5, 1), number(0x83, 1), text(0x86, "V_VP8"), element(0xe0, number(0xb0, width), number(0xba, height))));
  const clusters = [];
  for (let second = 0; second < seconds; second += 1) {
    const blocks = all.filter(({ ms }) => Math.floor(ms / 1000 + 1e-6) === second).map(({ ms, key, base64 }) => {
      const head = Buffer.from([0x81, 0, 0, key ? 0x80 : 0]);
      head.writeInt16BE(Math.round(ms) - second * 1000, 1);
      return element(0xa3, head, Buffer.from(base64, "base64"));
    });
    // Each is followed by bytes that mean nothing, so that a player does not read all of the film ahead.
    clusters.push(Buffer.concat([element(0x1f43b675, number(0xe7, second * 1000), ...blocks), element(0xec, Buffer.alloc(2_000_000, second))]));
  }
  // The index comes first; places in it have a fixed length, so its own length is known before they are.
  const index = (from) => {
    let at = from;
    return element(0x1c53bb6b, ...clusters.map((cluster, second) => {
      const point = element(0xbb, number(0xb3, second * 1000), element(0xb7, number(0xf7, 1), number(0xf1, at)));
      at += cluster.length;
      return point;
    }));
  };
  const head = Buffer.concat([info, track]);
  const cues = index(head.length + index(0).length);
  const begin = element(0x1a45dfa3, number(0x4286, 1), number(0x42f7, 1), number(0x42f2, 4), number(0x42f3, 8), text(0x4282, "webm"), number(0x4287, 2), number(0x4285, 2));
  return Buffer.concat([begin, element(0x18538067, head, cues, ...clusters)]);
}

/** A page with this text in large letters. */
export function pdf(words) {
  const content = `BT /F1 48 Tf 40 120 Td (${words}) Tj ET`;
  const objects = ["<</Type/Catalog/Pages 2 0 R>>", "<</Type/Pages/Kids[3 0 R]/Count 1>>",
    "<</Type/Page/Parent 2 0 R/MediaBox[0 0 500 300]/Resources<</Font<</F1 4 0 R>>>>/Contents 5 0 R>>",
    "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>", `<</Length ${content.length}>>stream\n${content}\nendstream`];
  let out = "%PDF-1.4\n";
  const places = objects.map((object, n) => {
    const at = out.length;
    out += `${n + 1} 0 obj\n${object}\nendobj\n`;
    return at;
  });
  const at = out.length;
  out += `xref\n0 ${objects.length + 1}\n0000000000 65535 f \n${places.map((place) => `${String(place).padStart(10, "0")} 00000 n \n`).join("")}trailer<</Size ${objects.length + 1}/Root 1 0 R>>\nstartxref\n${at}\n%%EOF`;
  return Buffer.from(out);
}
