"""Calibration of probabilities by one temperature for each label, fitted on the validation split (Guo et al. 2017).

Logits are divided by the temperature before the softmax (or, of several classes at once, the sigmoid): the order of the
classes stays, and of answers with a probability of 80 % about 80 % are correct. A run keeps its temperatures in
`calibration.json`, beside the checkpoints and never inside them.

Letters in shapes: n examples, k classes, m predictions, b bins.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.special import expit, logsumexp, softmax

from vitx import storage
from vitx.errors import UserError
from vitx.evaluation.evaluate import Predictions, select_labelled
from vitx.evaluation.figures import plain_text
from vitx.evaluation.report import BLUE, GREY, ORANGE, Picture, Results, Section, table
from vitx.tasks.classification import Classification
from vitx.tasks.multilabel import MultiLabel
from vitx.tasks.task import Task

FILE = "calibration.json"
FORMAT = 1
NUM_BINS = 15  # bins of equal width, as in Guo et al. 2017
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 100.0
"""Bounds: if every example is correct, no temperature is low enough; if a model is worse than chance, none is high."""

CERTAIN_LOSS = 1e-3  # nats; below, no example is wrong, and every lower temperature fits as well


@dataclasses.dataclass(frozen=True)
class LabelCalibration:
    """The temperature of one label, and what it changed on the examples that it was fitted on.

    Attributes:
        temperature: divisor of the logits.
        examples: number of examples.
        loss: negative log-likelihood in nats, before calibration.
        calibrated_loss: negative log-likelihood with the temperature.
        ece: expected calibration error in percent, before calibration.
        calibrated_ece: expected calibration error with the temperature.
    """

    temperature: float
    examples: int
    loss: float
    calibrated_loss: float
    ece: float
    calibrated_ece: float


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Temperatures of a run.

    Attributes:
        step: checkpoint that the temperatures were fitted for.
        views: "clips x crops" of each video.
        labels: {label: its temperature and what it changed}.
        settings: settings of the evaluation that differ from those of the training.
    """

    step: int
    views: str
    labels: Mapping[str, LabelCalibration]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def temperatures(self) -> dict[str, float]:
        """{label: temperature}."""
        return {label: found.temperature for label, found in self.labels.items()}

    def describe(self) -> list[str]:
        """Returns a line for each label: its temperature, and the calibration error before and after."""
        return [
            f"{label}: temperature {found.temperature:.3g}, expected calibration error {found.ece:.1f} % before and "
            f"{found.calibrated_ece:.1f} % after, on {found.examples} validation videos" + _describe_extreme(found)
            for label, found in self.labels.items()
        ]


def _describe_extreme(found: LabelCalibration) -> str:
    """Returns a warning about a temperature that the examples do not determine, or ""."""
    if found.temperature > MAX_TEMPERATURE / 1.01:
        return "; the model is no better than chance, so all its probabilities become equal"
    if found.temperature < MIN_TEMPERATURE * 1.01 or found.calibrated_loss < CERTAIN_LOSS:
        return "; (nearly) all predictions are correct, so other videos may get probabilities that are too certain"
    return ""


def scale_logits(
    outputs: Mapping[str, Float[np.ndarray, "*n _"]], temperatures: Mapping[str, float]
) -> dict[str, Float[np.ndarray, "*n _"]]:
    """Returns {label: logits divided by its temperature}; logits of a label without a temperature stay as they are."""
    return {label: logits / np.float32(temperatures.get(label, 1.0)) for label, logits in outputs.items()}


def fit_calibration(task: Task, predictions: Predictions, step: int, settings: Mapping[str, Any]) -> Calibration:
    """Fits the temperature of each label to the predictions of the validation split.

    Args:
        task: the task that was learnt.
        predictions: predictions of the split.
        step: checkpoint that they come from.
        settings: settings of the evaluation that differ from those of the training.

    Raises:
        UserError: the task predicts no probabilities, no example has a label, or a logit is not finite.
    """
    if not isinstance(task, Classification | MultiLabel):
        raise UserError(
            f"{type(task).__name__} predicts no probabilities; expected Classification or MultiLabel to be calibrated"
        )
    labels = {}
    for label in predictions.outputs:
        logits, targets = _select_logits(task, predictions, label)
        if not len(targets):
            continue
        if not np.isfinite(logits).all():
            raise UserError(f"found logits of {label} that are not finite; expected a run that has not diverged")
        loss = functools.partial(negative_log_likelihood, logits, targets)
        temperature = fit_temperature(loss)
        before, after = (expected_calibration_error(*confidences(logits / t, targets)) for t in (1.0, temperature))
        found = (temperature, len(targets), loss(1.0), loss(1 / temperature), before, after)
        labels[label] = LabelCalibration(*found)
    if not labels:
        raise UserError("no video of the validation split has a label; expected at least one to calibrate on")
    return Calibration(step, predictions.views, labels, dict(settings))


def fit_temperature(loss: Callable[[float], float]) -> float:
    """Returns the temperature of the least loss.

    Args:
        loss: convex function of the inverse temperature, such as `negative_log_likelihood`: the logarithm of a sum of
            exponentials of linear functions, less a linear one.
    """
    from scipy.optimize import minimize_scalar  # slow to import, and only a calibration needs it

    # The inverse, because the loss is convex in it and not in the temperature: there is one minimum.
    bounds = (1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE)
    return 1 / float(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-7}).x)


def negative_log_likelihood(
    logits: Float[np.ndarray, "n k"], targets: Shaped[np.ndarray, "n ..."], inverse_temperature: float
) -> float:
    """Returns the mean negative log-likelihood in nats of logits times an inverse temperature.

    Args:
        logits: logits.
        targets: true classes [n], or for each class whether the example has it [n, k].
        inverse_temperature: factor of the logits.
    """
    scaled = inverse_temperature * logits
    if targets.ndim == 2:
        return float((np.logaddexp(0, scaled) - scaled * targets).mean())
    return float((logsumexp(scaled, axis=1) - scaled[np.arange(len(targets)), targets]).mean())


def confidences(
    logits: Float[np.ndarray, "n k"], targets: Shaped[np.ndarray, "n ..."]
) -> tuple[Float[np.ndarray, "m"], Bool[np.ndarray, "m"]]:
    """Returns (confidence, whether it is correct) of each prediction.

    A prediction is the most probable class of an example; or, where targets are of several classes, every class of
    every example, and its confidence is the probability that the example has the class.
    """
    if targets.ndim == 2:
        return expit(logits).ravel(), (targets > 0.5).ravel()
    return softmax(logits, axis=1).max(axis=1), logits.argmax(axis=1) == targets


def reliability(
    confidence: Float[np.ndarray, "m"], correct: Bool[np.ndarray, "m"], num_bins: int = NUM_BINS
) -> tuple[Float[np.ndarray, "b"], Float[np.ndarray, "b"], Int[np.ndarray, "b"]]:
    """Returns (mean confidence, accuracy, number of predictions) in bins of equal width; NaN if empty."""
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(bins, values, num_bins) / counts for values in (confidence, correct)]
    return means[0], means[1], counts


def expected_calibration_error(
    confidence: Float[np.ndarray, "m"], correct: Bool[np.ndarray, "m"], num_bins: int = NUM_BINS
) -> float:
    """Returns the mean distance of confidence and accuracy in percent, over bins, weighted by their predictions."""
    mean, accuracy, counts = reliability(confidence, correct, num_bins)
    return float(100 * np.nansum(counts * np.abs(mean - accuracy)) / counts.sum())


def calibration_of_split(task: Task, predictions: Predictions, calibration: Calibration) -> dict[str, dict[str, float]]:
    """Returns {label: {temperature, ece, calibrated_ece}} of the predictions of a split, in percent."""
    found = {}
    for label, fitted in calibration.labels.items():
        logits, targets = _select_logits(task, predictions, label)
        if len(targets):
            before, after = (
                expected_calibration_error(*confidences(logits / t, targets)) for t in (1.0, fitted.temperature)
            )
            found[label] = {"temperature": fitted.temperature, "ece": before, "calibrated_ece": after}
    return found


def calibration_sections(task: Task, results: Results, calibration: Calibration | None) -> list[Section]:
    """Returns the section of the report about calibration, none for a run that is not calibrated."""
    if calibration is None:
        return []
    rows, pictures = [], []
    for label, found in calibration_of_split(task, results.predictions, calibration).items():
        logits, targets = _select_logits(task, results.predictions, label)
        temperature = found["temperature"]
        rows.append((label, *(f"{value:.3g}" for value in found.values())))
        figure = reliability_diagram(
            {"before": confidences(logits, targets), "after": confidences(logits / temperature, targets)},
            f"{label}, {results.split} split, temperature {temperature:.3g}",
        )
        pictures.append(Picture(f"reliability_{label}.png", f"reliability of the probabilities of {label}", figure))
    text = (
        "One temperature for each label, fitted on the validation split. Expected calibration error: the mean distance "
        f"of confidence and accuracy over {NUM_BINS} bins."
    )
    lines = table(("label", "temperature", "error before, %", "error after, %"), rows)
    return [Section("Calibration", [text, lines, *pictures])] if rows else []


def reliability_diagram(
    predictions: Mapping[str, tuple[Float[np.ndarray, "m"], Bool[np.ndarray, "m"]]], title: str
) -> Figure:
    """Draws accuracy against confidence, and below how many predictions are so confident.

    Args:
        predictions: {name of the panel: (confidence, whether it is correct) of each prediction}.
        title: heading.
    """
    figure = Figure(figsize=(4.2 * len(predictions), 5.2), layout="constrained")
    figure.suptitle(plain_text(title), fontsize=11)
    grid = figure.subplots(2, len(predictions), squeeze=False, sharex=True, height_ratios=[3, 1])
    for column, (name, (confidence, correct)) in enumerate(predictions.items()):
        error = expected_calibration_error(confidence, correct)
        mean, accuracy, counts = reliability(confidence, correct)
        above, below = grid[:, column]
        _draw_accuracies(above, mean, accuracy)
        above.set_title(plain_text(f"{name}: error {error:.1f} %"), fontsize=10)
        lefts = 100 * np.arange(len(counts)) / len(counts)
        below.bar(lefts, counts, width=100 / len(counts), align="edge", color=GREY, edgecolor="white", linewidth=0.8)
        below.set_xlabel("confidence, %")
        below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        below.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set_ylabel("accuracy, %")
    grid[1, 0].set_ylabel("predictions")
    grid[0, 0].legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def _draw_accuracies(axes: Axes, mean: Float[np.ndarray, "b"], accuracy: Float[np.ndarray, "b"]) -> None:
    """Draws the accuracy of each bin, and how far it is from the confidence."""
    width = 100 / len(mean)
    lefts = width * np.arange(len(mean))
    known = ~np.isnan(mean)
    axes.bar(lefts[known], 100 * accuracy[known], width, align="edge", color=BLUE, edgecolor="white", label="accuracy")
    gaps, bottoms = np.abs(mean - accuracy)[known], np.minimum(mean, accuracy)[known]
    style = {"facecolor": "none", "edgecolor": ORANGE, "hatch": "////", "linewidth": 1.0}
    axes.bar(lefts[known], 100 * gaps, width, 100 * bottoms, align="edge", label="distance to confidence", **style)
    axes.plot([0, 100], [0, 100], color=GREY, linewidth=1.2, linestyle="--")
    axes.set(xlim=(0, 100), ylim=(0, 104))
    axes.spines[["top", "right"]].set_visible(False)


def save_calibration(workdir: PurePath, calibration: Calibration) -> PurePath:
    """Writes a run's calibration.json; returns its path."""
    path = workdir / FILE
    storage.write_json(path, {"format": FORMAT, **dataclasses.asdict(calibration)})
    return path


def load_calibration(workdir: PurePath) -> Calibration | None:
    """Returns the calibration of a run, or None where it has none.

    Raises:
        UserError: the file is damaged.
    """
    path = workdir / FILE
    if not storage.is_file(path):
        return None
    data = storage.read_json(path)
    try:
        if data["format"] != FORMAT:
            raise ValueError(f"format is {data['format']!r}")
        labels = {label: LabelCalibration(**fields) for label, fields in data["labels"].items()}
        for label, found in labels.items():
            for name, value in dataclasses.asdict(found).items():
                if not isinstance(value, int | float):
                    raise ValueError(f"{name} of {label} is {value!r}")
            if not MIN_TEMPERATURE <= found.temperature <= MAX_TEMPERATURE:
                raise ValueError(f"the temperature of {label} is {found.temperature}")
        return Calibration(int(data["step"]), str(data["views"]), labels, dict(data["settings"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is no calibration: {error}; remove it, or fit it again with vitx evaluate {workdir} --calibrate"
        ) from error


def _select_logits(task: Any, predictions: Predictions, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (logits in float64, targets) of the examples that have the label."""
    logits, targets = select_labelled(task, predictions, label)
    return logits.astype(np.float64), targets
