// Clips: lists of them, and one in a dialog with its answer and an explanation.

import { $, get, h, notice, number, state, still } from "./shared.js";

const FIRST_CLIPS = 8; // of a list, until more are asked for
const MOST_FRAMES = 4; // frames that an explanation names

// Only videos in sight are loaded and play.
const player = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting && !target.src) target.src = target.dataset.src;
    if (isIntersecting && !still) target.play().catch(() => {});
    else target.pause();
  }
}, { rootMargin: "80px" });

/** Returns a list of clips; `where` is the path of the run's split, `found` its evaluation. */
export function clipList(list, where, found, missing = null) {
  const count = `${number(list.total)} ${list.total === 1 ? "clip" : "clips"}`;
  const shown = list.clips.length < list.total ? `${list.clips.length} of ${count}` : count;
  const cards = list.clips.map((clip) => card(clip, where, found, missing));
  const grid = h("div", { className: "clips" }, cards.slice(0, FIRST_CLIPS)), rest = cards.slice(FIRST_CLIPS);
  const showRest = ({ target }) => {
    grid.append(...rest);
    target.remove();
  };
  const more = h("button", { type: "button", className: "quiet more", onclick: showRest }, `Show ${rest.length} more`);
  const title = h("div", { className: "head" }, h("h3", {}, list.title), h("p", { className: "hint" }, shown));
  return [title, grid, ...(rest.length ? [more] : [])];
}

function card(clip, where, found, missing) {
  const placeholder = (text) => h("span", { className: "placeholder" }, text);
  const picture = missing ? placeholder(`clip ${clip.index}`) : h("video", { muted: true, loop: true, playsInline: true });
  if (!missing) {
    picture.dataset.src = `/api/runs${where}/clips/${clip.index}.mp4`;
    picture.addEventListener("error", () => picture.replaceWith(placeholder("cannot be shown")));
    player.observe(picture);
  }
  const tone = { true: "right", false: "wrong" }[clip.correct] ?? "";
  const lines = [
    clip.predicted ? h("p", { className: tone, title: clip.predicted }, clip.predicted) : null,
    clip.true ? h("p", { className: "soft", title: clip.true }, `true: ${clip.true}`) : null,
    clip.loss === null ? null : h("p", { className: "soft" }, `loss ${number(clip.loss)}`),
  ];
  const open = () => openClip(clip.index, where, found);
  const button = { type: "button", className: "card", ariaLabel: `clip ${clip.index}`, onclick: open };
  return h("button", button, picture, lines);
}

async function openClip(index, where, found) {
  const dialog = $("clip");
  let about;
  try {
    about = await get(`${where}/examples/${index}`);
  } catch (error) {
    about = { name: `clip ${index}`, missing: error.message, true: {}, answer: {} };
  }
  const close = h("button", { type: "button", className: "quiet", onclick: () => dialog.close() }, "Close");
  const video = about.missing ? notice(about.missing, "error") : large(`/api/runs${where}/clips/${index}.mp4`);
  const classified = found.labels.some((label) => label.confusion || label.per_class);
  dialog.replaceChildren(
    h("div", { className: "head" }, h("h2", { id: "clip-title" }, about.name), close),
    h("div", { className: "columns" }, h("div", {}, video), h("div", {}, answersOf(about, found))),
    ...(classified && !about.missing ? explainForm(index, where, found, about) : []),
  );
  dialog.showModal();
}

function large(source) {
  return h("video", { src: source, muted: true, loop: true, autoplay: !still, controls: true, playsInline: true });
}

function answersOf(about, found) {
  return Object.entries(about.answer).map(([label, answer]) => {
    const truth = about.true[label], known = found.labels.find(({ name }) => name === label);
    const ranked = known?.confusion || known?.per_class; // probabilities of classes; others have units of their own
    const rows = answer.map(([name, value]) => [
      h("span", { className: name === truth ? "true" : "" }, name),
      h("i", { "--part": ranked ? `${100 * value}%` : "0" }),
      h("span", {}, ranked ? `${(100 * value).toFixed(1)} %` : number(value)),
    ]);
    const title = h("h3", {}, label, h("span", { className: "soft" }, truth ? `  true: ${truth}` : ""));
    return [title, h("div", { className: "answer" }, rows)];
  });
}

function explainForm(index, where, found, about) {
  const options = (names) => names.map((name, place) => h("option", { value: String(place) }, name));
  const labels = h("select", { ariaLabel: "label", hidden: found.labels.length === 1 },
    options(found.labels.map(({ name }) => name)));
  const methods = h("select", { ariaLabel: "method" }, options(state.methods.map((name) => name.replaceAll("_", " "))));
  const classes = h("select", { ariaLabel: "class" });
  const result = h("div", { className: "explained" });
  const fillClasses = () => {
    const { name, classes: names } = found.labels[labels.value], truth = about.true[name];
    const predicted = about.answer[name]?.[0]?.[0];
    const marks = (known) => [known === predicted && "predicted", known === truth && "true"].filter(Boolean).join(", ");
    const first = [...new Set([predicted, truth])].filter((known) => names.includes(known));
    const ordered = [...first, ...names.filter((known) => !first.includes(known))];
    classes.replaceChildren(...ordered.map((known) => h(
      "option", { value: String(names.indexOf(known)) }, marks(known) ? `${known} (${marks(known)})` : known,
    )));
  };
  labels.value = String(state.label);
  labels.addEventListener("change", fillClasses);
  fillClasses();
  const explain = async ({ target }) => {
    target.disabled = true;
    result.replaceChildren(h("p", {}, "Explaining; the first time loads the model and compiles …"));
    try {
      const chosen = `${labels.value}/${classes.value}/${state.methods[methods.value]}`;
      const explanation = await get(`${where}/explanations/${index}/${chosen}`);
      const text = `${explanation.title}. ${mostImportant(explanation)}`;
      result.replaceChildren(large(explanation.video), h("p", {}, text));
    } catch (error) {
      result.replaceChildren(notice(error.message, "error"));
    }
    target.disabled = false;
    result.scrollIntoView({ block: "nearest", behavior: still ? "auto" : "smooth" });
  };
  const by = h("span", { className: "soft" }, "by");
  const button = h("button", { type: "button", className: "quiet main", onclick: explain }, "Explain");
  const form = [h("h3", {}, "What speaks for"), labels, classes, by, methods, button];
  return [h("div", { className: "block explain" }, form), result];
}

function mostImportant({ over_time: parts }) {
  const frames = parts.map((part, frame) => ({ part, frame })).sort((one, other) => other.part - one.part);
  const named = frames.slice(0, MOST_FRAMES).map(({ part, frame }) => `${frame} (${(100 * part).toFixed(0)} %)`);
  return `Most important frames: ${named.join(", ")}.`;
}
