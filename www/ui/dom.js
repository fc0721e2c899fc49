// Elements. Text enters as text, never as HTML; styles through CSSOM, as the page's policy wants it.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element with these properties and children; empty children are left out.
 *
 * `data`, `aria`, `attrs` (attributes), `on` (listeners) and `style` (CSS properties) are objects; all else is set as a property.
 * @param {string} tag @param {object} [props] @param {...(Node|string|number|null|false|undefined|Array)} children
 */
export function el(tag, props, ...children) {
  const { data = {}, aria = {}, attrs = {}, on = {}, style = {}, ...rest } = props ?? {};
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(rest)) if (value !== undefined && value !== null) element[name] = value;
  Object.assign(element.dataset, data);
  for (const [name, value] of Object.entries(aria)) {
    if (value !== undefined && value !== null) element.setAttribute(`aria-${name}`, value);
  }
  for (const [name, value] of Object.entries(attrs)) {
    if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value);
  }
  for (const [name, listener] of Object.entries(on)) element.addEventListener(name, listener);
  for (const [name, value] of Object.entries(style)) element.style.setProperty(name, value);
  put(element, children);
  return element;
}

/** Appends what is there of `children`, lists of them too. */
export function put(element, children) {
  for (const child of children.flat(3)) {
    if (child === null || child === undefined || child === false || child === "") continue;
    element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

/** An element of SVG. */
export function svg(tag, attrs = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attrs)) if (value !== undefined) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Drawn on 24 by 24, with a line of 1.8.
const ICONS = {
  home: "M4 11l8-7 8 7M6 9.5V20h4.5v-5.5h3V20H18V9.5",
  files: "M3.5 7a2 2 0 0 1 2-2h4l2 2.5h7a2 2 0 0 1 2 2V17a2 2 0 0 1-2 2h-13a2 2 0 0 1-2-2z",
  feed: "M4 13h4l1.5 3h5L16 13h4M4 13l2.5-7h11L20 13v5a1.5 1.5 0 0 1-1.5 1.5h-13A1.5 1.5 0 0 1 4 18z",
  fleet: "M12 8.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5zM5.5 20.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5zM18.5 20.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5zM11 8.3L6.8 15.6M13 8.3l4.2 7.3M8 18h8",
  chat: "M5 5h14a1.5 1.5 0 0 1 1.5 1.5v9A1.5 1.5 0 0 1 19 17h-7l-5 4v-4H5a1.5 1.5 0 0 1-1.5-1.5v-9A1.5 1.5 0 0 1 5 5z",
  spark: "M12 3l1.9 5.6L19.5 10.500l-5.6 1.900L12 18l-1.900-5.600L4.500 10.500l5.600-1.900zM19 16.500l.8 2.200 2.200.8-2.200.8-.8 2.200-.8-2.200-2.200-.8 2.200-.8z",
  leaf: "M5 19c0-9 5-14 15-14 0 10-5 15-12 14M5 21c1-5 4-8.500 9-11",
  invite: "M10 12.500a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM3 20c.6-3.500 3.500-5.500 7-5.500 1.500 0 2.800.3 4 1M18.500 13.500v7M15 17h7",
  settings: "M4 7h9M17 7h3M4 17h3M11 17h9M15 9.500a2.500 2.500 0 1 0 0-5 2.500 2.500 0 0 0 0 5zM9 19.500a2.500 2.500 0 1 0 0-5 2.500 2.500 0 0 0 0 5z",
  help: "M12 20.500a8.500 8.500 0 1 0 0-17 8.500 8.500 0 0 0 0 17zM9.500 9.700a2.600 2.600 0 1 1 3.700 2.400c-.8.4-1.200.9-1.200 1.700M12 16.700v.1",
  more: "M5.900 12a.9.9 0 1 1-1.800 0 .9.9 0 0 1 1.800 0zM12.900 12a.9.9 0 1 1-1.800 0 .9.9 0 0 1 1.800 0zM19.900 12a.9.9 0 1 1-1.800 0 .9.9 0 0 1 1.800 0z",
  close: "M6 6l12 12M18 6L6 18",
  back: "M14.500 5.500L8 12l6.500 6.500",
  next: "M9.500 5.500L16 12l-6.500 6.500",
  down: "M5.500 9.500L12 16l6.500-6.500",
  up: "M5.500 14.500L12 8l6.500 6.500",
  search: "M10.500 17.500a7 7 0 1 0 0-14 7 7 0 0 0 0 14zM15.700 15.700L20.500 20.500",
  upload: "M12 16V4.500M7 9l5-5 5 5M4.500 15.500v3a1.500 1.500 0 0 0 1.500 1.500h12a1.500 1.500 0 0 0 1.500-1.500v-3",
  download: "M12 4v11.500M7 11l5 5 5-5M4.500 15.500v3a1.500 1.500 0 0 0 1.500 1.500h12a1.500 1.500 0 0 0 1.500-1.500v-3",
  folder: "M3.500 7a2 2 0 0 1 2-2h4l2 2.500h7a2 2 0 0 1 2 2V17a2 2 0 0 1-2 2h-13a2 2 0 0 1-2-2z",
  "new-folder": "M3.500 7a2 2 0 0 1 2-2h4l2 2.500h7a2 2 0 0 1 2 2V17a2 2 0 0 1-2 2h-13a2 2 0 0 1-2-2zM12 10.500v5M9.500 13h5",
  file: "M6 3.500h8l4.500 4.500v12a.8.8 0 0 1-.8.500H6.300a.8.8 0 0 1-.8-.8V4.200a.8.8 0 0 1 .5-.7zM13.500 4v4.500H18",
  image: "M4.500 5h15a1 1 0 0 1 1 1v12a1 1 0 0 1-1 1h-15a1 1 0 0 1-1-1V6a1 1 0 0 1 1-1zM4 17l5-5 4 4 3-3 4 4M15.500 10a1.300 1.300 0 1 0 0-2.600 1.300 1.300 0 0 0 0 2.600z",
  video: "M4.500 6h10a1 1 0 0 1 1 1v10a1 1 0 0 1-1 1h-10a1 1 0 0 1-1-1V7a1 1 0 0 1 1-1zM15.500 10.500l5-3v9l-5-3",
  audio: "M9 17.500V6l10-2v11.500M9 17.500a2.700 2.700 0 1 1-5.400 0 2.700 2.700 0 0 1 5.400 0zM19 15.500a2.700 2.700 0 1 1-5.400 0 2.700 2.700 0 0 1 5.400 0z",
  text: "M6 3.500h8l4.500 4.500v12a.8.8 0 0 1-.8.500H6.300a.8.8 0 0 1-.8-.8V4.200a.8.8 0 0 1 .5-.7zM9 12h6M9 15.500h6M9 8.500h2",
  pdf: "M6 3.500h8l4.500 4.500v12a.8.8 0 0 1-.8.500H6.300a.8.8 0 0 1-.8-.8V4.200a.8.8 0 0 1 .5-.7zM9 16.500c2-2 3-5 2.500-6.500s-1 .5 0 2 3 3 4.500 2.500",
  archive: "M4 5h16v4H4zM5.500 9v10h13V9M10 12.500h4",
  link: "M10 14a4 4 0 0 0 5.700 0l3-3A4 4 0 0 0 13 5.300l-1.200 1.200M14 10a4 4 0 0 0-5.700 0l-3 3A4 4 0 0 0 11 18.700l1.200-1.200",
  share: "M17 8.500a2.500 2.500 0 1 0 0-5 2.500 2.500 0 0 0 0 5zM6.500 14.500a2.500 2.500 0 1 0 0-5 2.500 2.500 0 0 0 0 5zM17 20.500a2.500 2.500 0 1 0 0-5 2.500 2.500 0 0 0 0 5zM8.800 10.900l6-3.600M8.800 13.200l6 3.500",
  trash: "M4.500 7h15M9.500 7V4.500h5V7M6.500 7l.8 12.500a1 1 0 0 0 1 .9h7.400a1 1 0 0 0 1-.9L17.500 7M10 11v5.500M14 11v5.500",
  restore: "M4.500 12a7.500 7.500 0 1 0 2.500-5.600M4.500 4.500v4h4M12 8v4.500l3 1.500",
  versions: "M12 20.500a8.500 8.500 0 1 0 0-17 8.500 8.500 0 0 0 0 17zM12 7.500V12l3 2",
  list: "M8.500 6.500h12M8.500 12h12M8.500 17.500h12M4 6.500v.1M4 12v.1M4 17.500v.1",
  grid: "M4 4h6.500v6.500H4zM13.500 4H20v6.500h-6.500zM4 13.500h6.500V20H4zM13.500 13.500H20V20h-6.500z",
  check: "M5 12.500l4.500 4.500L19 7.500",
  warn: "M12 4L2.800 19.500h18.400zM12 10v4.500M12 17v.1",
  info: "M12 20.500a8.500 8.500 0 1 0 0-17 8.500 8.500 0 0 0 0 17zM12 11v5M12 8v.1",
  shield: "M12 3.500l7 2.500v5.500c0 4.500-3 7.500-7 9-4-1.500-7-4.500-7-9V6zM8.800 12l2.400 2.400 4-4.400",
  pause: "M8.500 5.500v13M15.500 5.500v13",
  play: "M8 5.500v13l10.500-6.500z",
  edit: "M4.500 19.500l1-4L16 5l3 3L8.500 18.500zM14 7l3 3",
  move: "M3.500 7a2 2 0 0 1 2-2h4l2 2.500h7a2 2 0 0 1 2 2V17a2 2 0 0 1-2 2h-13a2 2 0 0 1-2-2zM9 13.500h6M12.500 11l2.500 2.500-2.500 2.500",
  away: "M7 18.500a4.500 4.500 0 0 1-.6-8.900A6 6 0 0 1 18 10.600a4 4 0 0 1-.5 7.900zM12 10v5.500M9.500 13l2.500 2.500 2.500-2.500",
  star: "M12 4l2.500 5.100 5.600.8-4 4 .9 5.600-5-2.700-5 2.700.9-5.600-4-4 5.600-.8z",
  copy: "M9 9h10.500v10.500H9zM5.500 15H4.500V4.500H15v1",
  send: "M4.500 12L20 4.500 15.500 20l-3.500-6.500zM12 13.500l8-9",
  out: "M10 4.500H5.500v15H10M14 8l4 4-4 4M18 12H9",
  key: "M8 16.500a4.500 4.500 0 1 0 0-9 4.500 4.500 0 0 0 0 9zM12.500 12H21v3.500M17 12v3",
  power: "M12 3.500v8M7 6.500a7.500 7.500 0 1 0 10 0",
  refresh: "M19.500 12a7.500 7.500 0 1 1-2.500-5.600M19.500 4.500v4h-4",
  plus: "M12 5v14M5 12h14",
  attach: "M18.500 11.500l-6.800 6.800a4.300 4.300 0 0 1-6-6L13 5a2.900 2.900 0 0 1 4 4l-7 7a1.400 1.400 0 0 1-2-2l6.300-6.300",
  eye: "M2.500 12C5 7.500 8 5.500 12 5.500s7 2 9.500 6.500c-2.500 4.500-5.500 6.500-9.500 6.500S5 16.500 2.500 12zM12 15a3 3 0 1 0 0-6 3 3 0 0 0 0 6z",
  box: "M12 3.500l8 4v9l-8 4-8-4v-9zM4 7.500l8 4 8-4M12 11.500v9",
};

/** A drawing beside a word; nothing for screen readers. */
export function icon(name) {
  return svg("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true", focusable: "false" },
    svg("path", { d: ICONS[name] ?? ICONS.file }));
}
