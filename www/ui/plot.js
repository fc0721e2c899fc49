// Plots over time, by uPlot, which is loaded when the first one is drawn.

import { el } from "./dom.js";

let loading = null;

function load() {
  loading ??= new Promise((done, failed) => {
    document.head.append(el("link", { rel: "stylesheet", href: "/vendor/uPlot.min.css" }),
      el("script", { src: "/vendor/uPlot.iife.min.js", on: { load: () => done(window.uPlot), error: failed } }));
  });
  return loading;
}

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/**
 * A plot in `root`.
 * @param {HTMLElement} root
 * @param {{label: string, data: number[][], series: {label: string, color: string, fill?: boolean}[], value: (n: number) => string,
 *   height?: number, bars?: boolean}} spec `data[0]` are Unix seconds; colours are names of CSS variables
 */
export async function plot(root, { label, data, series, value, height = 160, bars = false }) {
  const UPlot = await load();
  const box = el("div", { className: "plot", attrs: { role: "img" }, aria: { label } });
  root.replaceChildren(box);
  const draw = () => {
    const width = Math.max(200, box.clientWidth);
    const axis = { stroke: color("--muted"), grid: { stroke: color("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
    const options = {
      width, height, cursor: { y: false, points: { size: 7 } }, legend: { show: true, live: true },
      scales: { y: { range: (_, __, max) => [0, max > 0 ? max * 1.1 : 1] } },
      axes: [{ ...axis, space: 70 }, { ...axis, size: 70, space: 36, values: (_, ticks) => ticks.map((n) => (n === null ? "" : value(n))) }],
      series: [{ value: (_, s) => (s === null ? "" : new Date(s * 1000).toLocaleString([], { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" })) },
        ...series.map((one) => ({
          label: one.label, stroke: color(one.color), width: bars ? 0 : 2, points: { show: false },
          fill: one.fill || bars ? `${color(one.color)}${bars ? "" : "28"}` : undefined,
          paths: bars ? UPlot.paths.bars({ size: [0.7, 40] }) : undefined,
          value: (_, n) => (n === null || n === undefined ? "–" : value(n)),
        }))],
    };
    box.replaceChildren();
    return new UPlot(options, data, box);
  };
  let drawn = draw();
  const sized = new ResizeObserver(() => drawn.setSize({ width: Math.max(200, box.clientWidth), height }));
  sized.observe(root);
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const again = () => { drawn.destroy(); drawn = draw(); };
  scheme.addEventListener("change", again);
  return { set: (newer) => drawn.setData(newer), destroy: () => { sized.disconnect(); scheme.removeEventListener("change", again); drawn.destroy(); } };
}
