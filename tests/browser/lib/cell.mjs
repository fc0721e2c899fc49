// Real cells: the built program in temporary folders, run, asked, stopped and killed.

import { execFile, spawn } from "node:child_process";
import crypto from "node:crypto";
import dgram from "node:dgram";
import fs from "node:fs";
import http from "node:http";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { serve } from "./disk.mjs";
import { waitFor, witness } from "./runner.mjs";

export const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../../..");
export const TARGET = process.env.CARGO_TARGET_DIR ? path.resolve(ROOT, process.env.CARGO_TARGET_DIR) : path.join(ROOT, "target");
export const GROVE = process.env.GROVE ?? path.join(TARGET, "debug", "grove");
export const PASSWORD = "a correct horse";

const LINES_MAX = 20;

// A cell says nothing to the neighbours of this machine, and a disk that is nearly full is no matter of most tests.
const TEST_SETTINGS = { "lan.discovery": false, "portmap": false, "peer.listen": "127.0.0.1", "disk.reserve_percent": 0, "disk.reserve_bytes_min": 1 << 20 };

const cells = new Set();

witness(async () => [...cells].flatMap((cell) => [`log of ${cell.name}${cell.child && (cell.child.exitCode ?? cell.child.signalCode) !== null ? " (has ended)" : ""}:`, ...(cell.log ?? "").trimEnd().split("\n").slice(-LINES_MAX)]).join("\n"), () => endAll());

/** Whether nobody has this port. */
const isFree = (socket, begin, port) => new Promise((done) => {
  socket.once("error", () => done(false));
  socket.once("listening", () => socket.close(() => done(true)));
  socket[begin](port, "0.0.0.0");
});

let nextPort = crypto.randomInt(12_000);

/** A port that is free, is given out once, and that the kernel gives to no connection: a cell finds it free after each start. */
async function freePort() {
  for (let tries = 0; tries < 1000; tries += 1) {
    nextPort = (nextPort + 7) % 12_000;
    const port = 20_000 + nextPort;
    if (await isFree(net.createServer(), "listen", port) && await isFree(dgram.createSocket("udp4"), "bind", port)) return port;
  }
  throw new Error("no free port");
}

/**
 * One request by a connection of its own: one that is kept may be closed by the cell in the moment in which it is used again,
 * and after a busy time it often is.
 */
export function request(method, address, headers, body) {
  return new Promise((done, failed) => {
    const text = body ? JSON.stringify(body) : "";
    const asked = http.request(address, { method, agent: false, headers: { ...headers, ...(body ? { "Content-Type": "application/json", "Content-Length": Buffer.byteLength(text) } : {}) } }, (response) => {
      const pieces = [];
      response.on("data", (piece) => pieces.push(piece));
      response.on("error", failed);
      response.on("end", () => {
        try {
          const text = Buffer.concat(pieces).toString();
          done({ status: response.statusCode, told: /json/.test(response.headers["content-type"]) ? JSON.parse(text) : text });
        } catch (error) {
          failed(error);
        }
      });
    });
    asked.setTimeout(60_000, () => asked.destroy(new Error("no answer within a minute")));
    asked.on("error", failed);
    asked.end(text);
  });
}

export class Cell {
  /** Makes a cell and starts it; `before` gets it in between. */
  static async start(name, config = {}, before = () => {}) {
    const cell = new Cell();
    cell.name = name;
    cell.root = fs.mkdtempSync(path.join(os.tmpdir(), "grove-browser-"));
    cell.dir = path.join(cell.root, "state");
    cell.home = path.join(cell.root, "home");
    cell.port = await freePort();
    cell.peerPort = await freePort();
    cell.url = `http://127.0.0.1:${process.env.WWW_FROM_DISK ? await serve(path.join(ROOT, "www"), cell.port) : cell.port}`;
    cells.add(cell);
    await cell.cli("init", "--name", name);
    const file = path.join(cell.dir, "config.json");
    const known = fs.existsSync(file) ? JSON.parse(fs.readFileSync(file, "utf8")) : {};
    fs.writeFileSync(file, JSON.stringify({ ...known, ...TEST_SETTINGS, ...config }));
    before(cell);
    await cell.run();
    return cell;
  }

  get base() {
    return ["--dir", this.dir, "--home", this.home, "--port", String(this.port), "--peer-port", String(this.peerPort)];
  }

  /** Runs a command of the program; gives what it prints. */
  cli(...words) {
    return new Promise((done, failed) => {
      execFile(GROVE, [...this.base, ...words], { timeout: 120_000, maxBuffer: 16e6 }, (error, stdout, stderr) => {
        if (error) failed(new Error(`grove ${words.join(" ")}: ${stderr || error.message}`));
        else done(stdout);
      });
    });
  }

  async run() {
    this.log = "";
    this.child = spawn(GROVE, [...this.base, "run"], { stdio: ["ignore", "pipe", "pipe"] });
    const take = (bytes) => { this.log = (this.log + bytes).slice(-200_000); };
    this.child.stdout.on("data", take);
    this.child.stderr.on("data", take);
    this.ended = new Promise((done) => this.child.once("exit", done));
    await this.waitUp();
  }

  async waitUp() {
    await waitFor(`${this.name} is up`, async () => {
      if (this.child.exitCode !== null) throw new Error(`${this.name} has ended:\n${this.log}`);
      return (await request("GET", `${this.url}/healthz`, {}).catch(() => null))?.status === 200;
    });
  }

  async kill(signal = "SIGKILL") {
    this.child.kill(signal);
    await this.ended;
  }

  /** The code for the first visit. */
  get code() {
    const found = this.log.match(/code ([0-9A-Z]{4}-[0-9A-Z]{4})/);
    if (!found) throw new Error(`no set-up code in:\n${this.log}`);
    return found[1];
  }

  /** Asks the API as a program of its owner does. */
  async api(method, at, body) {
    const secret = fs.readFileSync(path.join(this.dir, "peer_secret"), "utf8").trim();
    const { status, told } = await request(method, `${this.url}/api/v1/${at}`, { Authorization: `Bearer ${secret}` }, body).catch((error) => { throw new Error(`${method} ${at} of ${this.name}: ${error.code ?? ""} ${error.message}`); });
    if (status >= 400) throw new Error(`${method} ${at}: ${told.error?.code} ${told.error?.message}`);
    return told;
  }

  /** Sets the password and tells that the phrase is kept, without a browser. */
  async setUp() {
    const { status, told } = await request("POST", `${this.url}/api/v1/setup`, { Origin: this.url }, { code: this.code, password: PASSWORD });
    if (status !== 200) throw new Error(`set-up: ${JSON.stringify(told)}`);
    await this.api("POST", "phrase/kept");
  }

  /** Puts a file into GroveHome. */
  put(name, bytes) {
    const file = path.join(this.home, name);
    fs.mkdirSync(path.dirname(file), { recursive: true });
    fs.writeFileSync(file, bytes);
    return file;
  }

  read(name) {
    return fs.readFileSync(path.join(this.home, name));
  }

  has(name) {
    return fs.existsSync(path.join(this.home, name));
  }

  /** Waits until all that lies in GroveHome is kept. */
  async settle() {
    await this.cli("add", this.home);
  }

  async end() {
    cells.delete(this);
    if (this.child?.exitCode === null && this.child.signalCode === null) {
      this.child.kill("SIGTERM");
      const late = setTimeout(() => this.child.kill("SIGKILL"), 30_000);
      await this.ended;
      clearTimeout(late);
    }
    fs.rmSync(this.root, { recursive: true, force: true });
  }
}

/** Makes two cells friends. */
export async function befriend(one, other) {
  const { token } = await one.api("POST", "invites", { role: "friend" });
  await other.api("POST", "join", { token });
  await waitFor("the two are friends", async () => (await one.api("GET", "peers")).peers.some((peer) => peer.friendship === "friends" && peer.online));
}

/** Ends all cells that are left. */
export async function endAll() {
  for (const cell of [...cells]) await cell.end();
}

/** Six digits for a secret in base32, now. */
export function totp(secret, at = Date.now()) {
  const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
  const bits = [...secret.replace(/[^A-Z2-7]/g, "")].map((letter) => letters.indexOf(letter).toString(2).padStart(5, "0")).join("");
  const key = Buffer.from(bits.match(/.{8}/g).map((byte) => parseInt(byte, 2)));
  const step = Buffer.alloc(8);
  step.writeBigUInt64BE(BigInt(Math.floor(at / 30_000)));
  const hash = crypto.createHmac("sha1", key).update(step).digest();
  const from = hash[19] & 15;
  return String((hash.readUInt32BE(from) & 0x7fffffff) % 1e6).padStart(6, "0");
}

/** A small picture as PNG: `width` by `height`, of one colour that changes along it. */
export async function png(width, height, [red, green, blue]) {
  const zlib = await import("node:zlib");
  const raw = Buffer.alloc(height * (1 + width * 3));
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const at = y * (1 + width * 3) + 1 + x * 3;
      raw[at] = Math.min(255, red + Math.floor((x / width) * 60));
      raw[at + 1] = Math.min(255, green + Math.floor((y / height) * 60));
      raw[at + 2] = blue;
    }
  }
  const chunk = (type, data) => {
    const body = Buffer.concat([Buffer.from(type), data]);
    const out = Buffer.alloc(body.length + 8);
    out.writeUInt32BE(data.length, 0);
    body.copy(out, 4);
    out.writeUInt32BE(crc(body), body.length + 4);
    return out;
  };
  const head = Buffer.alloc(13);
  head.writeUInt32BE(width, 0);
  head.writeUInt32BE(height, 4);
  head.set([8, 2, 0, 0, 0], 8);
  return Buffer.concat([Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]), chunk("IHDR", head), chunk("IDAT", zlib.deflateSync(raw)), chunk("IEND", Buffer.alloc(0))]);
}

function crc(bytes) {
  let sum = 0xffffffff;
  for (const byte of bytes) {
    sum ^= byte;
    for (let n = 0; n < 8; n += 1) sum = sum & 1 ? (sum >>> 1) ^ 0xedb88320 : sum >>> 1;
  }
  return (sum ^ 0xffffffff) >>> 0;
}

/** A tone of two seconds, as WAV. */
export function wav() {
  const samples = 16000;
  const bytes = Buffer.alloc(44 + samples * 2);
  bytes.write("RIFF", 0);
  bytes.writeUInt32LE(36 + samples * 2, 4);
  bytes.write("WAVEfmt ", 8);
  bytes.writeUInt32LE(16, 16);
  bytes.writeUInt16LE(1, 20);
  bytes.writeUInt16LE(1, 22);
  bytes.writeUInt32LE(8000, 24);
  bytes.writeUInt32LE(16000, 28);
  bytes.writeUInt16LE(2, 32);
  bytes.writeUInt16LE(16, 34);
  bytes.write("data", 36);
  bytes.writeUInt32LE(samples * 2, 40);
  for (let n = 0; n < samples; n += 1) bytes.writeInt16LE(Math.round(6000 * Math.sin(n / 8)), 44 + n * 2);
  return bytes;
}
