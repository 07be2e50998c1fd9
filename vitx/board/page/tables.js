// Tables of an evaluated split: metrics, confusion matrix, classes, predicted frames.

import { h, notice, number } from "./shared.js";

const MAX_BUTTONS = 40; // classes of a matrix that has a button for each cell; more are drawn on a canvas
const MAX_PAIRS = 12; // pairs of classes that are listed beside a canvas
const COLUMNS = {
  precision: "precision %", recall: "recall %", f1: "F1 %", average_precision: "average precision %", support: "clips",
};

/** Returns the metrics of one label, and those of all. */
export function metricsTable(found, label, split) {
  const others = found.labels.map(({ name }) => name).filter((name) => name && name !== label.name);
  const rows = found.metrics
    .filter(({ name }) => !others.some((other) => name.startsWith(`${other}/`)))
    .map(({ name, value, interval }) => h(
      "tr",
      {},
      h("td", { className: "text" }, name),
      h("td", {}, number(value, name)),
      h("td", { className: "soft" }, interval ? interval.map((bound) => number(bound, name)).join(" to ") : ""),
    ));
  const names = ["metric", "value", "95 % interval"];
  const head = h("tr", {}, names.map((name, place) => h("th", { className: place ? "" : "text", scope: "col" }, name)));
  const about = h("p", { className: "hint" }, `step ${number(found.step)} · ${found.coverage}`);
  const table = h("table", { className: "plain" }, h("thead", {}, head), h("tbody", {}, rows));
  const unread = found.unreadable.length ? notice(`Not read: ${found.unreadable.join("; ")}`, "error") : null;
  const title = h("div", { className: "head" }, h("h3", {}, `Metrics, ${split} split`), about);
  return h("div", { className: "block" }, title, unread, h("div", { className: "scroll" }, table));
}

/** Returns a confusion matrix; a click on a cell calls onclick(true class, predicted class). */
export function confusionMatrix(label, onclick) {
  const totals = label.confusion.map((row) => Math.max(row.reduce((sum, count) => sum + count, 0), 1));
  const hint = h("p", { className: "hint" }, "rows: true · columns: predicted · a click shows the clips");
  const draw = label.classes.length > MAX_BUTTONS ? drawCanvas : drawButtons;
  const title = h("div", { className: "head" }, h("h3", {}, "Confusion matrix"), hint);
  return h("div", { className: "block" }, title, draw(label.classes, label.confusion, totals, onclick));
}

function drawButtons(classes, counts, totals, onclick) {
  let pressed = null;
  const cell = (truth, predicted) => {
    const count = counts[truth][predicted], part = count / totals[truth];
    const percent = `${(100 * part).toFixed(1)} % of the class`;
    const button = h("button", {
      type: "button",
      className: count ? (part > 0.5 ? "full" : "") : "zero",
      disabled: !count,
      "aria-pressed": "false",
      "--fill": `${Math.round(92 * part)}%`,
      title: `${classes[truth]} predicted as ${classes[predicted]}: ${count} (${percent})`,
      onclick: () => {
        pressed?.setAttribute("aria-pressed", "false");
        pressed = button;
        button.setAttribute("aria-pressed", "true");
        onclick(truth, predicted);
      },
    }, String(count || ""));
    button.dataset.cell = `${truth}-${predicted}`;
    return h("td", {}, button);
  };
  const turned = classes.some((name) => name.length > 3) ? "turned" : "";
  const head = classes.map((name) => h("th", { scope: "col", title: name }, h("span", { className: turned }, name)));
  const rows = classes.map((name, truth) => h(
    "tr", {}, h("th", { scope: "row", title: name }, name), classes.map((_, predicted) => cell(truth, predicted)),
  ));
  const side = classes.length <= 12 ? 40 : classes.length <= 24 ? 28 : 20;
  const table = h("table", { className: "matrix", "--side": `${side}px` },
    h("thead", {}, h("tr", {}, h("th"), head)), h("tbody", {}, rows));
  return h("div", { className: "wide" }, table);
}

function drawCanvas(classes, counts, totals, onclick) {
  const size = classes.length;
  const canvas = h("canvas", { width: size, height: size }), paint = canvas.getContext("2d");
  const describe = (truth, predicted) =>
    `${classes[truth]} predicted as ${classes[predicted]}: ${counts[truth][predicted]}`;
  const caption = h("p", { className: "axes" }, " ");
  canvas.style.width = `${Math.min(size * Math.max(Math.floor(560 / size), 1), 560)}px`;
  paint.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent");
  counts.forEach((row, truth) => row.forEach((count, predicted) => {
    paint.globalAlpha = count ? 0.15 + 0.85 * count / totals[truth] : 0.04;
    paint.fillRect(predicted, truth, 1, 1);
  }));
  const at = ({ offsetX, offsetY }) => [offsetY / canvas.clientHeight, offsetX / canvas.clientWidth]
    .map((part) => Math.min(Math.max(Math.floor(part * size), 0), size - 1));
  canvas.onpointermove = (event) => { caption.textContent = describe(...at(event)); };
  canvas.onclick = (event) => onclick(...at(event));
  const pairs = counts
    .flatMap((row, truth) => row.map((count, predicted) => ({ truth, predicted, count })))
    .filter(({ truth, predicted, count }) => count && truth !== predicted)
    .sort((one, other) => other.count - one.count)
    .slice(0, MAX_PAIRS)
    .map(({ truth, predicted }) => {
      const button = { type: "button", className: "name", onclick: () => onclick(truth, predicted) };
      return h("div", {}, h("button", button, describe(truth, predicted)));
    });
  const most = h("div", {}, h("p", { className: "axes" }, "Confused most often"), pairs);
  return h("div", { className: "beside" }, h("div", {}, canvas, caption), most);
}

/** Returns a table by class. */
export function classTable({ name, classes, per_class: rows }) {
  const keys = Object.keys(Object.values(rows)[0] ?? {});
  const values = classes.map((known) => [known, ...keys.map((key) => rows[known][key])]);
  const head = ["class", ...keys.map((key) => COLUMNS[key] ?? key)];
  return sortableTable(`Classes of ${name}`, head, ["", ...keys], values);
}

/** Returns a table of metrics by predicted frame. */
export function frameTable(frames) {
  const length = Math.max(...Object.values(frames).map((values) => values.length));
  const head = Array.from({ length }, (_, place) => `frame ${place + 1}`);
  const values = Object.entries(frames).map(([name, numbers]) => [name, ...numbers]);
  return sortableTable("Predicted frames", ["metric", ...head], [], values);
}

function sortableTable(title, head, kinds, rows) {
  const table = h("table");
  let by = null, descending = false;
  const compare = (one, other) => (by === 0
    ? one[0].localeCompare(other[0], "en", { numeric: true })
    : (one[by] ?? -Infinity) - (other[by] ?? -Infinity));
  const draw = () => {
    const ordered = by === null ? rows : [...rows].sort((one, other) => (descending ? -1 : 1) * compare(one, other));
    const cells = head.map((name, place) => {
      const direction = by === place ? (descending ? "descending" : "ascending") : "none";
      const sort = () => {
        descending = by === place ? !descending : place > 0;
        by = place;
        draw();
      };
      return h("th", { scope: "col", className: place ? "" : "text", "aria-sort": direction },
        h("button", { type: "button", onclick: sort }, name));
    });
    const body = ordered.map((row) => h("tr", {}, row.map((value, place) => h(
      "td", { className: place ? "" : "text" }, place ? number(value, kinds[place]) : value,
    ))));
    table.replaceChildren(h("thead", {}, h("tr", {}, cells)), h("tbody", {}, body));
  };
  draw();
  return h("div", { className: "block" }, h("h3", {}, title), h("div", { className: "scroll" }, table));
}
