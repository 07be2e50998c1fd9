// The page of `vitx board`: the table of runs, and one run in detail.

import { $, choice, choose, colourOf, get, h, notice, number, state, still, unchoose } from "./shared.js";
import { clipList } from "./clips.js";
import { dimOthers, drawCurves, redrawCurves } from "./curves.js";
import { classTable, confusionMatrix, frameTable, metricsTable } from "./tables.js";

const REFRESH_MS = 5000; // while a run trains
const MAX_CHOSEN = 6; // runs whose curves are drawn at first
const MAX_SETTINGS = 8; // columns, until all are asked for

// ---- table of runs

function columns() {
  const metricNames = [...new Set(state.runs.flatMap((run) => Object.keys(run.test?.metrics ?? {})))];
  const monitors = [...new Set(state.runs.map((run) => run.monitor).filter(Boolean))];
  const best = monitors.map((name) => ({
    title: name,
    above: "best validation",
    value: (run) => (run.monitor === name ? run.best?.metrics[name] : undefined),
  }));
  const test = metricNames.map((name) => ({ title: name, above: "test", value: (run) => run.test?.metrics[name] }));
  const shown = state.allSettings ? state.settings : state.settings.slice(0, MAX_SETTINGS);
  const settings = shown.map(({ path, values }) => ({
    title: path.split(".").at(-1),
    above: path.split(".").slice(0, -1).join("."),
    text: true,
    value: (run) => values[run.index],
    cell: (run) => asText(values[run.index]),
  }));
  for (const [first] of [best, test, settings]) if (first) first.group = true;
  return [
    { title: "run", text: true, value: (run) => run.name, cell: nameCell },
    { title: "state", text: true, value: (run) => run.state, cell: stateCell },
    { title: "step", value: (run) => run.step, cell: stepCell },
    ...best, ...test, ...settings,
  ];
}

const asText = (value) => (typeof value === "string" ? value : value === undefined ? "–" : JSON.stringify(value));
const classesOf = ({ text, group }) => `${text ? "text" : ""} ${group ? "group" : ""}`;
const isSorted = ({ title, above }) => state.sort?.title === title && state.sort?.above === above;

function compareRuns(column) {
  const sign = state.sort.descending ? -1 : 1;
  return (one, other) => {
    const [a, b] = [column.value(one), column.value(other)];
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined); // missing ones come last
    const numbers = typeof a === "number" && typeof b === "number";
    return sign * (numbers ? a - b : asText(a).localeCompare(asText(b), "en", { numeric: true }));
  };
}

function drawRuns() {
  const shown = columns(), sorted = shown.find(isSorted);
  const runs = sorted ? [...state.runs].sort(compareRuns(sorted)) : state.runs;
  const rows = runs.map((run) => {
    const cells = shown.map((column) => {
      const value = column.cell ? column.cell(run) : number(column.value(run), column.title);
      return h("td", { className: classesOf(column) }, value);
    });
    const row = h("tr", { className: run.index === state.open ? "open" : "" }, cells);
    row.addEventListener("pointerenter", () => dimOthers(run.index));
    row.addEventListener("pointerleave", () => dimOthers(null));
    return row;
  });
  $("runs").replaceChildren(h("thead", {}, h("tr", {}, shown.map(headCell))), h("tbody", {}, rows));
  const hidden = state.settings.length - MAX_SETTINGS;
  $("more-settings").hidden = hidden <= 0;
  const more = `Show ${hidden} more settings that differ`;
  $("more-settings").textContent = state.allSettings ? "Show fewer settings" : more;
  $("count").textContent = `${state.runs.length} ${state.runs.length === 1 ? "run" : "runs"}`;
}

function headCell(column) {
  const sorted = isSorted(column);
  const sort = () => {
    const descending = sorted ? !state.sort.descending : !column.text;
    state.sort = { title: column.title, above: column.above, descending };
    drawRuns();
  };
  const direction = sorted ? (state.sort.descending ? "descending" : "ascending") : "none";
  return h("th", { className: classesOf(column), "aria-sort": direction, scope: "col" },
    h("small", {}, column.above ?? ""), h("button", { type: "button", onclick: sort }, column.title));
}

function stateCell(run) {
  return h("span", { className: `state ${run.state.split(" ")[0]}`, title: run.error ?? "" }, run.state);
}

const stepCell = (run) => (run.steps ? `${number(run.step)} / ${number(run.steps)}` : "");

function nameCell(run) {
  const chosen = state.chosen.has(run.index), swatch = h("span", { className: "swatch" });
  if (chosen) swatch.style.background = colourOf(run.index);
  const toggle = ({ target }) => {
    (target.checked ? choose : unchoose)(run.index);
    drawRuns();
    drawCurves();
  };
  const box = { type: "checkbox", checked: chosen, disabled: !run.steps, ariaLabel: `compare ${run.name}` };
  const open = { type: "button", className: "name", title: run.path, onclick: () => openRun(run.index, true) };
  const input = h("input", { ...box, onchange: toggle });
  return h("div", { className: "first" }, input, swatch, h("button", open, run.name));
}

// ---- one run

let opening = 0; // only the newest of several openings is drawn

async function openRun(index, scroll = false) {
  const mine = ++opening, section = $("run"), run = state.runs[index];
  if (state.open !== index) Object.assign(state, { open: index, split: null, label: 0 });
  drawRuns();
  const head = h("div", { className: "head" }, h("h2", { id: "run-title" }, run.name)), body = h("div");
  const path = h("p", { className: "path" }, [run.path, run.model, run.task].filter(Boolean).join("  ·  "));
  try {
    if (run.error) throw new Error(run.error);
    await fillRun(run, head, body);
  } catch (error) {
    body.append(h("div", { className: "block" }, notice(error.message, "error")));
  }
  if (mine !== opening) return;
  section.hidden = false;
  section.replaceChildren(head, path, body);
  history.replaceState(null, "", `#${index}`);
  if (scroll) section.scrollIntoView({ behavior: still ? "auto" : "smooth" });
}

async function fillRun(run, head, body) {
  const { splits, command, pictures } = await get(`/${run.index}/evaluated`);
  if (!splits.includes(state.split)) state.split = splits.includes("test") ? "test" : splits[0] ?? null;
  if (state.split) {
    const found = await get(`/${run.index}/${state.split}`), labels = found.labels.map(({ name }) => name);
    const change = (changes) => {
      Object.assign(state, changes);
      openRun(run.index);
    };
    const choices = [
      splits.length > 1 ? choice(splits, state.split, (split) => change({ split })) : null,
      labels.length > 1 ? choice(labels, labels[state.label], (_, label) => change({ label })) : null,
    ];
    head.append(h("div", { className: "choices" }, choices));
    body.append(...evaluation(`/${run.index}/${state.split}`, found));
  } else {
    const missing = "This run keeps no predictions yet, so there are no clips, tables by class or confusion matrices. "
      + "As soon as it has a checkpoint, this command adds them: ";
    body.append(h("div", { className: "block" }, notice([missing, h("code", {}, command)])));
  }
  if (pictures.length) body.append(report(run, pictures));
}

function evaluation(where, found) {
  const label = found.labels[state.label], metrics = metricsTable(found, label, state.split);
  const behind = h("div", { className: "block", id: "behind", hidden: true }), mistakes = h("div");
  const showCell = async (truth, predicted) => {
    behind.hidden = false;
    try {
      const list = await get(`${where}/cells/${state.label}/${truth}/${predicted}`);
      behind.replaceChildren(...clipList(list, where, found));
      behind.scrollIntoView({ block: "nearest", behavior: still ? "auto" : "smooth" });
    } catch (error) {
      behind.replaceChildren(notice(error.message, "error"));
    }
  };
  fillMistakes(mistakes, where, found).catch((error) => mistakes.append(notice(error.message, "error")));
  return [
    label.confusion ? h("div", { className: "columns" }, metrics, confusionMatrix(label, showCell)) : metrics,
    behind,
    mistakes,
    ...(label.per_class ? [classTable(label)] : []),
    ...(found.per_frame ? [frameTable(found.per_frame)] : []),
  ];
}

async function fillMistakes(mistakes, where, found) {
  const lists = await get(`${where}/mistakes/${state.label}`), first = lists.flatMap(({ clips }) => clips)[0];
  // Asked once: without the dataset, every clip would fail for the same reason.
  const missing = first ? (await get(`${where}/examples/${first.index}`)).missing : null;
  if (missing) mistakes.append(h("div", { className: "block" }, notice(`Clips cannot be shown: ${missing}`, "error")));
  for (const list of lists) mistakes.append(h("div", { className: "block" }, clipList(list, where, found, missing)));
}

function report(run, pictures) {
  const details = h("details", {}, h("summary", {}, "Pictures of the report"));
  details.addEventListener("toggle", () => {
    if (!details.open || details.children.length > 1) return;
    const images = pictures.map((name, i) => h("img", { src: `/api/runs/${run.index}/pictures/${i}`, alt: name }));
    details.append(...images);
  });
  // Of tasks without classes, pictures show what no table does.
  details.open = !["Classification", "MultiLabel"].includes(run.task);
  return h("div", { className: "block" }, details);
}

// ---- start and refresh

async function refresh() {
  const live = state.runs.some((run) => ["training", "no rows yet"].includes(run.state));
  if (live && !document.hidden) {
    const before = JSON.stringify(state.runs[state.open]);
    try {
      Object.assign(state, await get(""));
      drawRuns();
      await drawCurves();
      if (JSON.stringify(state.runs[state.open]) !== before) await openRun(state.open);
    } catch (error) {
      $("count").textContent = error.message;
    }
  }
  setTimeout(refresh, REFRESH_MS);
}

async function start() {
  $("more-settings").onclick = () => {
    state.allSettings = !state.allSettings;
    drawRuns();
  };
  $("log").onchange = drawCurves;
  $("clip").onclick = ({ target }) => target === $("clip") && $("clip").close();
  $("clip").onclose = () => $("clip").replaceChildren();
  new ResizeObserver(redrawCurves).observe($("curves"));
  try {
    Object.assign(state, await get(""));
    for (const run of state.runs.filter(({ step }) => step > 0).slice(0, MAX_CHOSEN)) choose(run.index);
    drawRuns();
    await drawCurves();
    const wanted = state.runs[Number(location.hash.slice(1) || NaN)];
    await openRun((wanted ?? state.runs.find(({ test }) => test) ?? state.runs[0]).index);
  } catch (error) {
    document.querySelector("main").prepend(notice(error.message, "error"));
  }
  setTimeout(refresh, REFRESH_MS);
}

start();
