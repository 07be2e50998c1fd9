// Learning curves of the chosen runs, one panel for each metric.

import { $, colourOf, get, h, number, state, svg } from "./shared.js";

const HEIGHT = 210;
const MAX_DOTS = 60; // points of a curve that are marked
const MAX_ROWS = 14; // of the values under the pointer

/** Draws the curves again; asks for those of runs that have new rows. */
export async function drawCurves() {
  const chosen = state.runs.filter((run) => state.chosen.has(run.index));
  await Promise.all(chosen.map(async (run) => {
    const known = state.curves.get(run.index);
    if (known?.step === run.step && known?.state === run.state) return;
    const data = await get(`/${run.index}/curves`).catch(() => ({ curves: {}, units: {} }));
    state.curves.set(run.index, { ...data, step: run.step, state: run.state });
  }));
  // A run may have been unticked meanwhile.
  const shown = chosen.filter((run) => state.chosen.has(run.index) && state.curves.has(run.index));
  const metrics = [...new Set(shown.flatMap((run) => Object.keys(state.curves.get(run.index).curves)))];
  const units = Object.assign({}, ...shown.map((run) => state.curves.get(run.index).units));
  const panels = metrics.map((metric) => panel(metric, units[metric], shown.flatMap((run) => seriesOf(run, metric))));
  $("curves-key").textContent = metrics.length ? "thin: training · dots: validation · diamond: test" : "";
  $("log").parentElement.hidden = !metrics.length;
  const none = h("p", { className: "hint" }, state.chosen.size ? "No metrics are logged yet." : "No run is ticked.");
  $("curves").replaceChildren(...(panels.length ? panels : [none]));
  redrawCurves();
}

/** Draws the curves at the present width. */
export function redrawCurves() {
  for (const element of $("curves").children) element.draw?.();
}

/** Dims all curves but those of one run; null dims none. */
export function dimOthers(index) {
  for (const group of document.querySelectorAll("#curves g[data-run]")) {
    const dimmed = index !== null && state.chosen.has(index) && group.dataset.run !== String(index);
    group.classList.toggle("dim", dimmed);
  }
}

function seriesOf(run, metric) {
  const splits = state.curves.get(run.index).curves[metric] ?? {};
  return Object.entries(splits)
    .map(([split, points]) => ({ run, split, points: points.filter(([, value]) => typeof value === "number") }))
    .filter(({ points }) => points.length);
}

function panel(metric, unit, series) {
  const picture = svg("svg", { role: "img", "aria-label": `${metric} against steps` });
  const tip = h("div", { className: "tip", hidden: true });
  const title = h("h3", {}, metric, h("span", {}, unit ? `  ${unit}` : ""));
  const element = h("div", { className: "panel" }, title, picture, tip);
  if (!series.length) return element;
  const values = series.flatMap(({ points }) => points.map(([, value]) => value));
  const last = Math.max(...series.map(({ points }) => points.at(-1)[0])) || 1;
  const axes = { metric, last, logarithmic: $("log").checked && values.reduce((a, b) => Math.min(a, b)) > 0 };
  const scale = axes.logarithmic ? Math.log10 : (value) => value;
  const [lowest, highest] = [Math.min, Math.max].map((pick) => scale(values.reduce((a, b) => pick(a, b))));
  const room = (highest - lowest || Math.abs(lowest) || 1) * 0.06;
  Object.assign(axes, { scale, low: lowest - room, high: highest + room });
  element.draw = () => draw(element, picture, tip, series, axes);
  return element;
}

function draw(element, picture, tip, series, axes) {
  const width = Math.max(element.clientWidth - 24, 200);
  const [left, right, top, bottom] = [44, width - 10, 10, HEIGHT - 24];
  const x = (step) => left + (step / axes.last) * (right - left);
  const y = (value) => bottom - ((axes.scale(value) - axes.low) / (axes.high - axes.low)) * (bottom - top);
  const marks = ticks(axes.low, axes.high, 5).flatMap((tick) => {
    const value = axes.logarithmic ? 10 ** tick : tick;
    return [
      svg("line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) }),
      svg("text", { x: left - 7, y: y(value) + 4, "text-anchor": "end" }, short(value)),
    ];
  });
  for (const tick of ticks(0, axes.last, Math.max(Math.floor(width / 90), 2))) {
    const anchor = tick === 0 ? "start" : x(tick) > right - 12 ? "end" : "middle";
    marks.push(svg("text", { x: x(tick), y: HEIGHT - 7, "text-anchor": anchor }, short(tick)));
  }
  const cursor = svg("line", { class: "cursor", y1: top, y2: bottom, visibility: "hidden" });
  picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  picture.setAttribute("height", HEIGHT);
  picture.replaceChildren(...marks, ...series.map((one) => curve(one, x, y)), cursor);
  picture.onpointerleave = () => {
    tip.hidden = true;
    cursor.setAttribute("visibility", "hidden");
  };
  picture.onpointermove = ({ offsetX }) => {
    const step = ((offsetX * width / picture.clientWidth - left) / (right - left)) * axes.last;
    showValues(tip, cursor, series, step, axes.metric, x);
  };
}

function curve({ run, split, points }, x, y) {
  const colour = colourOf(run.index);
  const group = svg("g", { "data-run": run.index });
  if (split === "test") {
    for (const [step, value] of points) {
      group.append(svg("path", { d: `M${x(step)} ${y(value) - 5}l5 5l-5 5l-5 -5z`, fill: colour, class: "test" }));
    }
    return group;
  }
  const train = split === "train";
  const style = train ? { "stroke-width": 1, "stroke-opacity": 0.55 } : { "stroke-width": 1.8 };
  const path = points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  group.append(svg("polyline", { points: path, fill: "none", stroke: colour, "stroke-linejoin": "round", ...style }));
  if (points.length <= (train ? 1 : MAX_DOTS)) {
    const dots = points.map(([step, value]) => svg("circle", { cx: x(step), cy: y(value), r: 2.4, fill: colour }));
    group.append(...dots);
  }
  return group;
}

function showValues(tip, cursor, series, step, metric, x) {
  const steps = series.flatMap(({ points }) => points.map(([known]) => known));
  const nearest = steps.reduce((best, known) => (Math.abs(known - step) < Math.abs(best - step) ? known : best));
  const rows = series
    .flatMap(({ run, split, points }) => points
      .filter(([known]) => known === nearest)
      .map(([, value]) => ({ run, split, value })))
    .sort((one, other) => other.value - one.value)
    .slice(0, MAX_ROWS)
    .map(({ run, split, value }) => {
      const swatch = h("span", { className: "swatch" });
      swatch.style.background = colourOf(run.index);
      return h("div", {}, swatch, h("span", {}, `${run.name}, ${split}`), h("span", {}, number(value, metric)));
    });
  tip.replaceChildren(h("div", { className: "soft" }, `step ${number(nearest)}`), ...rows);
  const at = x(nearest);
  cursor.setAttribute("x1", at);
  cursor.setAttribute("x2", at);
  cursor.setAttribute("visibility", "visible");
  tip.hidden = false;
  // Beside the pointer, on the side with room; never beyond the window.
  const before = tip.parentElement.getBoundingClientRect().left, size = tip.offsetWidth;
  const right = at + 24, fits = before + right + size < document.documentElement.clientWidth - 8;
  tip.style.left = `${Math.max(fits ? right : at - size, 8 - before)}px`;
}

function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-6; i += 1) found.push(i * step);
  return found;
}

function short(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(3))}M`;
  if (size >= 1e4) return `${Number((value / 1e3).toPrecision(3))}k`;
  return String(Number(value.toPrecision(3)));
}
