// The only place that talks to the cell.

/**
 * @typedef {{name: string, set_up: boolean, signed_in: boolean}} Session
 * @typedef {{code: string, level: "urgent"|"warn"|"info", text: string, remedy: string, since_s: number, since_unix: number}} Alert
 * @typedef {{count: number, bytes: number}} Amount
 * @typedef {{kind: string, text: string, done: number, total: number, unit: string}} Job
 * @typedef {{
 *   name: string, id: string, role: "peer"|"friend"|"favorite", online: boolean, last_seen_s: number|null,
 *   held_for_us_bytes: number, held_for_them_bytes: number,
 * }} Peer
 * @typedef {{
 *   name: string, id: string, version: string, uptime_s: number, life: number, home: string,
 *   state: "ok"|"attention", alerts: Alert[],
 *   files: {count: number, bytes: number, waiting: number}, chunks: Amount, held: Amount,
 *   disk: {total: number, free: number, reserve: number}, peers: Peer[],
 *   copies: {wanted: number, full: number, short: number}, job: Job|null,
 *   scan: {running: boolean, last_s: number|null},
 * }} Status
 */

const ANSWER_MS_MAX = 20000;

/** The cell said no, or (status 0) said nothing. */
export class ApiError extends Error {
  /** @param {number} status @param {string} code @param {string} message @param {string} hint */
  constructor(status, code, message, hint) {
    super(message);
    this.status = status;
    this.code = code;
    this.hint = hint;
  }
}

/** @param {string} method @param {string} path @param {object} [body] */
async function ask(method, path, body) {
  let response;
  let told;
  try {
    response = await fetch(path, {
      method,
      headers: body ? { "Content-Type": "application/json" } : {},
      body: body ? JSON.stringify(body) : undefined,
      cache: "no-store",
      signal: AbortSignal.timeout(ANSWER_MS_MAX),
    });
    told = await response.json();
  } catch {
    const status = response && !response.ok ? response.status : 0;
    throw new ApiError(status, "no_answer", "The cell does not answer.", "Is it switched on and connected?");
  }
  if (!response.ok) {
    const error = told.error ?? {};
    throw new ApiError(response.status, error.code ?? "", error.message ?? "Something went wrong.", error.hint ?? "");
  }
  return told;
}

/** @returns {Promise<Session>} */
export const session = () => ask("GET", "/api/v1/session");

/** @returns {Promise<Status>} */
export const status = () => ask("GET", "/api/v1/status");

/** @param {string} password */
export const login = (password) => ask("POST", "/api/v1/login", { password });

/** @param {string} code @param {string} password */
export const setup = (code, password) => ask("POST", "/api/v1/setup", { code, password });

export const logout = () => ask("POST", "/api/v1/logout");
