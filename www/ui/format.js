// Words for numbers and times.

import { t } from "../texts.js";

const UNITS = ["unit.bytes", "unit.kb", "unit.mb", "unit.gb", "unit.tb", "unit.pb"];
const lang = document.documentElement.lang || "en";

/** `1.5 GB`; multiples of 1,000. */
export function bytes(count) {
  if (count === 1) return t("unit.byte");
  let unit = 0;
  while (count >= 999.5 && unit < UNITS.length - 1) {
    count /= 1000;
    unit += 1;
  }
  const digits = unit > 0 && count < 9.95 ? 1 : 0;
  return `${count.toFixed(digits)}\u00a0${t(UNITS[unit])}`;
}

/** With a capital letter and a full stop. */
export const sentence = (text) => (text ? `${text[0].toUpperCase()}${text.slice(1)}${/[.!?…:]$/.test(text) ? "" : "."}` : "");

export const number = (count) => Number(count).toLocaleString(lang);
export const rate = (perSecond) => t("unit.rate", { bytes: bytes(perSecond) });
export const percent = (share) => `${Math.round(share * 100)}\u00a0%`;

/** `3 files`: the texts `KEY.one` and `KEY.many` have `{n}`. */
export const counted = (count, key) => t(`${key}.${count === 1 ? "one" : "many"}`, { n: number(count) });

/** A span of seconds as coarse as people say it. */
export function duration(seconds) {
  if (seconds < 60) return t("time.moment");
  if (seconds < 3600) return counted(Math.floor(seconds / 60), "time.minute");
  if (seconds < 2 * 86400) return counted(Math.floor(seconds / 3600), "time.hour");
  return counted(Math.floor(seconds / 86400), "time.day");
}

/** What is left: seconds too. */
export function left(seconds) {
  if (!Number.isFinite(seconds)) return "";
  return seconds < 60 ? counted(Math.max(1, Math.round(seconds)), "time.second") : duration(seconds);
}

export function ago(seconds) {
  if (seconds === null || seconds === undefined) return t("time.never");
  return seconds < 60 ? t("time.now") : t("time.ago", { span: duration(seconds) });
}

const day = new Intl.DateTimeFormat(lang, { year: "numeric", month: "short", day: "numeric" });
const clock = new Intl.DateTimeFormat(lang, { hour: "2-digit", minute: "2-digit" });
const both = new Intl.DateTimeFormat(lang, { year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
const ahead = (unix) => Math.max(0, unix - Date.now() / 1000);

/** Unix seconds as a day. */
export const date = (unix) => day.format(new Date(unix * 1000));
/** Unix seconds as a time of the day. */
export const time = (unix) => clock.format(new Date(unix * 1000));
/** Unix seconds in full. */
export const moment = (unix) => both.format(new Date(unix * 1000));
/** How long until these Unix seconds. */
export const until = (unix) => duration(ahead(unix));

/** Unix seconds as people say it: today by the clock, else by the day. */
export function when(unix) {
  return new Date(unix * 1000).toDateString() === new Date().toDateString() ? time(unix) : date(unix);
}
