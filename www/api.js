// The only place that talks to the cell.

import { t } from "./texts.js";

/**
 * @typedef {{
 *   name: string, set_up: boolean, signed_in: boolean, totp?: boolean, secure?: boolean, fingerprint?: string,
 *   version?: string, fresh?: boolean,
 * }} Session
 * @typedef {{code: string, level: "urgent"|"warn"|"info", text: string, remedy: string, since_s: number, since_unix: number}} Alert
 * @typedef {{count: number, bytes: number}} Amount
 * @typedef {{kind: string, text: string, done: number, total: number, unit: string}} Job
 * @typedef {{
 *   name: string, id: string, own_name: string, role: "peer"|"friend", friendship: "none"|"asked"|"wanted"|"friends",
 *   online: boolean, last_seen_s: number|null, held_for_us_bytes: number, held_for_them_bytes: number, quota_bytes: number,
 *   favorite: boolean, addresses: string[], state: string, full: boolean, suspended: boolean,
 * }} Peer
 * @typedef {{
 *   name: string, id: string, version: string, uptime_s: number, life: number, home: string,
 *   state: "ok"|"attention", alerts: Alert[],
 *   files: {count: number, bytes: number, waiting: number}, chunks: Amount, held: Amount,
 *   disk: {total: number, free: number, reserve: number}|null, peers: Peer[],
 *   copies: {wanted: number, full: number, short: number}, job: Job|null, bin: number, bin_days: number,
 *   brake: {files: number, bytes: number}|null,
 *   scan: {running: boolean, last_s: number|null},
 * }} Status
 * @typedef {{
 *   name: string, kind: "file"|"folder"|"symlink", size: number, modified_unix_ms: number, id: string,
 *   state: "here"|"away"|"waiting", shared: boolean, copies: {have: number, want: number},
 * }} Entry
 */

const ANSWER_MS_MAX = 30000;
const ROOT = "/api/v1";

/** The cell said no, or (status 0) said nothing. */
export class ApiError extends Error {
  /** @param {number} status @param {string} code @param {string} message @param {string} hint @param {object} [more] */
  constructor(status, code, message, hint, more = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.hint = hint;
    this.more = more;
  }
}

let onSignedOut = () => {};
/** Called when the cell does not know the session any more. */
export function whenSignedOut(listener) {
  onSignedOut = listener;
}

/** `/api/v1/PATH` with the parameters that are there. */
export function url(path, params = {}) {
  const query = Object.entries(params)
    .filter(([, value]) => value !== undefined && value !== null && value !== "" && value !== false)
    .map(([key, value]) => `${key}=${encodeURIComponent(value === true ? 1 : value)}`).join("&");
  return `${ROOT}/${path}${query ? `?${query}` : ""}`;
}

async function ask(method, address, { body, raw, signal, limit = ANSWER_MS_MAX } = {}) {
  let response;
  let told;
  const timeout = AbortSignal.timeout(limit);
  const both = signal ? AbortSignal.any?.([signal, timeout]) ?? signal : timeout;
  try {
    response = await fetch(address, {
      method,
      headers: raw ? { "Content-Type": "application/octet-stream" } : body ? { "Content-Type": "application/json" } : {},
      body: raw ?? (body ? JSON.stringify(body) : undefined),
      cache: "no-store",
      signal: both,
    });
    told = await response.json();
  } catch {
    if (signal?.aborted) throw new ApiError(-1, "left", "", "");
    const status = response && !response.ok ? response.status : 0;
    throw new ApiError(status, "no_answer", t("error.no_answer"), t("error.no_answer.hint"));
  }
  if (!response.ok) {
    const { code = "", message = t("error.unknown"), hint = "", ...more } = told.error ?? {};
    const error = new ApiError(response.status, code, message, hint, { ...told, ...more });
    if (response.status === 401 && !/login|setup|session|password/.test(address)) onSignedOut();
    throw error;
  }
  return told;
}

export const get = (path, params, options) => ask("GET", url(path, params), options);
export const post = (path, body = {}, options) => ask("POST", `${ROOT}/${path}`, { body, ...options });
export const putRaw = (path, params, raw, options) => ask("PUT", url(path, params), { raw, ...options });

/** @returns {Promise<Session>} */
export const session = () => get("session");
/** @returns {Promise<Status>} */
export const status = () => get("status");

/**
 * Long work: posts, then follows the job until it has ended, and gives its result.
 * @param {(job: {text: string, done: number, total: number, unit: string}) => void} [onProgress]
 */
export async function job(path, body, onProgress = () => {}) {
  const started = await post(path, body);
  if (started.job === undefined) return started;
  for (;;) {
    let now;
    try {
      now = await get(`jobs/${started.job}`, { wait_ms: 2000 });
    } catch (error) {
      if (error.status !== 0) throw error;
      await new Promise((done) => setTimeout(done, 2000));
      continue;
    }
    if (now.state === "done") return now.result ?? {};
    if (now.state === "failed") throw new ApiError(409, now.error?.code ?? "", now.error?.message ?? "", now.error?.hint ?? "");
    onProgress(now);
  }
}
