// What all parts of the page use: what is shown, requests, elements, numbers as text.

const COLOURS = [
  "#3b7dc4", "#d9822b", "#3a9b5f", "#c0506a", "#8468cf", "#9a7b45", "#1fa3b1", "#cb74b3", "#7d8b99", "#a8a12c",
];
const PERCENT = /(^|\/)(top1|top5|mAP|mAP_labelled|macro_\w+|precision|recall|f1|average_precision)$/;

export const state = {
  runs: [], // as /api/runs lists them
  settings: [], // that differ
  methods: [], // of explanation
  chosen: new Set(), // runs whose curves are drawn
  colours: new Map(), // place in COLOURS of each chosen run
  curves: new Map(), // curves of runs, as they were at a step
  open: null, // run that is shown in detail
  split: null, // of the open run
  label: 0, // of the open run
  sort: null, // column of the table of runs
  allSettings: false, // whether the table has every setting that differs
};

export const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
export const $ = (id) => document.getElementById(id);
export const colourOf = (run) => COLOURS[state.colours.get(run) % COLOURS.length];
export const notice = (text, kind = "") => h("p", { className: `notice ${kind}` }, text);

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (name in element && name !== "role") element[name] = value;
    else element.setAttribute(name, value);
  }
  // Strings become text: a class may be called <script>.
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export async function get(path) {
  let answer;
  try {
    answer = await fetch(`/api/runs${path}`);
  } catch {
    throw new Error("The board does not answer; is `vitx board` still running?");
  }
  const data = await answer.json();
  if (!answer.ok) throw new Error(data.error);
  return data;
}

/** Marks a run as chosen, with the first colour that no other chosen run has. */
export function choose(index) {
  const used = new Set([...state.chosen].map((other) => state.colours.get(other)));
  const free = COLOURS.findIndex((_, place) => !used.has(place));
  state.chosen.add(index);
  state.colours.set(index, free < 0 ? state.chosen.size : free);
}

export function unchoose(index) {
  state.chosen.delete(index);
  state.colours.delete(index);
}

/** Returns a number as text: percentages with one decimal, others with three digits or decimals. */
export function number(value, name = "") {
  if (typeof value !== "number") return value === null || value === undefined ? "–" : String(value);
  if (PERCENT.test(name)) return value.toFixed(1);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 100 ? value.toFixed(1) : size >= 0.01 ? value.toFixed(3) : value.toExponential(1);
}

/** Returns buttons of which one is pressed. */
export function choice(names, current, onchoose) {
  return h("div", { className: "choice", role: "group" }, names.map((name, place) => h(
    "button",
    { type: "button", "aria-pressed": String(name === current), onclick: () => onchoose(name, place) },
    name,
  )));
}
