// Small pictures of files, made in the browser: the cell decodes no media. Kept in memory, and in the browser for the next visit.

import * as api from "../api.js";
import { el } from "../ui/dom.js";
import { kindOf } from "./names.js";

const EDGE = 320;
const SOURCE_BYTES_MAX = 40e6;
const AT_ONCE = 2;
const KEPT = 400;
const STORED = 3000;

/** Bitmaps by file id and version, the newest last. */
const bitmaps = new Map();
const broken = new Set();
const queue = [];
let working = 0;

// The store of the browser; without it they are made anew.

let opening = null;
function store() {
  opening ??= new Promise((done) => {
    try {
      const ask = indexedDB.open("grove-thumbs", 1);
      ask.onupgradeneeded = () => ask.result.createObjectStore("thumbs", { autoIncrement: false });
      ask.onsuccess = () => done(ask.result);
      ask.onerror = () => done(null);
    } catch {
      done(null);
    }
  });
  return opening;
}

const answer = (request) => new Promise((done) => {
  request.onsuccess = () => done(request.result);
  request.onerror = () => done(undefined);
});

async function stored(key) {
  const db = await store();
  return db ? answer(db.transaction("thumbs").objectStore("thumbs").get(key)) : undefined;
}

async function keep(key, blob) {
  const db = await store();
  if (!db) return;
  try {
    const table = db.transaction("thumbs", "readwrite").objectStore("thumbs");
    table.put(blob, key);
    if (await answer(table.count()) > STORED) db.transaction("thumbs", "readwrite").objectStore("thumbs").clear();
  } catch {
    // A full browser keeps none.
  }
}

function remember(key, bitmap) {
  bitmaps.set(key, bitmap);
  if (bitmaps.size > KEPT) {
    const [oldest, old] = bitmaps.entries().next().value;
    bitmaps.delete(oldest);
    old.close?.();
  }
}

function shrink(source, width, height) {
  const scale = Math.min(1, EDGE / Math.min(width, height));
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
  canvas.getContext("2d").drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

async function ofImage(url, signal) {
  const response = await fetch(url, { signal });
  if (!response.ok) throw new Error(`status ${response.status}`);
  const whole = await createImageBitmap(await response.blob());
  const canvas = shrink(whole, whole.width, whole.height);
  whole.close();
  return canvas;
}

function ofVideo(url, signal) {
  return new Promise((done, failed) => {
    const video = el("video", { muted: true, preload: "metadata", playsInline: true, src: url });
    const end = (result, error) => {
      clearTimeout(timer);
      video.removeAttribute("src");
      video.load();
      if (error) failed(error);
      else done(result);
    };
    const timer = setTimeout(() => end(null, new Error("slow")), 15000);
    signal.addEventListener("abort", () => end(null, new Error("left")));
    video.addEventListener("loadedmetadata", () => { video.currentTime = Math.min(1, (video.duration || 0) / 3); });
    video.addEventListener("seeked", () => end(shrink(video, video.videoWidth, video.videoHeight)));
    video.addEventListener("error", () => end(null, new Error("no picture")));
  });
}

async function make(job) {
  const { key, entry, url, signal } = job;
  let bitmap = bitmaps.get(key);
  if (!bitmap) {
    const known = await stored(key);
    if (known) bitmap = await createImageBitmap(known);
    else {
      const canvas = await (kindOf(entry.name) === "video" ? ofVideo(url, signal) : ofImage(url, signal));
      const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.8 });
      keep(key, blob);
      bitmap = await createImageBitmap(canvas);
    }
    remember(key, bitmap);
  }
  return bitmap;
}

function next() {
  while (working < AT_ONCE && queue.length > 0) {
    const job = queue.pop();
    if (job.signal.aborted) continue;
    working += 1;
    make(job).then((bitmap) => { if (!job.signal.aborted) job.show(bitmap); }, () => { if (!job.signal.aborted) broken.add(job.key); }).finally(() => {
      working -= 1;
      next();
    });
  }
}

/** Whether a picture of this entry can be made. */
export function canShow(entry) {
  const kind = kindOf(entry.name);
  return entry.kind === "file" && entry.size > 0 && (kind === "video" || (kind === "image" && entry.size <= SOURCE_BYTES_MAX));
}

/**
 * Draws a small picture into `canvas` as soon as there is one; ended by the signal.
 * @param {HTMLCanvasElement} canvas @param {{id: string, name: string, size: number, modified_unix_ms: number}} entry
 */
export function draw(canvas, entry, signal, url = api.url("content", { id: entry.id, inline: 1 })) {
  const key = `${entry.id} ${entry.modified_unix_ms ?? entry.version} ${entry.size}`;
  if (broken.has(key)) return;
  const show = (bitmap) => {
    canvas.width = bitmap.width;
    canvas.height = bitmap.height;
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    canvas.classList.add("drawn");
  };
  const known = bitmaps.get(key);
  if (known) return void show(known);
  // What came into sight last is made first.
  queue.push({ key, entry, url, signal, show });
  next();
}
