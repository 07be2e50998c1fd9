"""Stream: a video that is read frame by frame, with the answer after each frame. In shapes: h w the frame, t frames."""

import collections
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import UInt8
from matplotlib.figure import Figure

from vitx.errors import UserError, did_you_mean
from vitx.evaluation.calibration import scale_logits
from vitx.evaluation.figures import plain_text
from vitx.evaluation.presentation import Answer, presenter_for
from vitx.evaluation.report import encode_png
from vitx.fonts import add_fallback_fonts
from vitx.interop.preprocessing import Preprocessing
from vitx.models.streaming import StreamingModel
from vitx.tasks.task import Names, Supervised

MAX_HISTORY = 256  # frames whose answers are kept for the picture: a stream has no end
MAX_COLUMNS, MAX_CLASSES = 12, 5  # frames and classes of the picture


class Stream:
    """A video that is read frame by frame; after each frame it answers for all frames so far, at constant memory.

    Attributes:
        num_frames: number of frames that it has read.
        answers: {label: {class: probability}} after each of the last frames.
        milliseconds: time that each of them took, from pixels in memory to the answer.
        state: what the model carries from frame to frame, a pytree of arrays.
    """

    def __init__(
        self,
        model: nn.Module,
        variables: Any,
        *,
        task: Supervised,
        names: Names,
        image_size: tuple[int, int],
        temperatures: Mapping[str, float] | None = None,
    ) -> None:
        """Starts a stream and compiles the step, so that the first frame is as fast as the others.

        Args:
            model: a model that classifies and is a `StreamingModel`.
            variables: its variables.
            task: its task, which normalises pixels.
            names: {label: names of its classes}.
            image_size: (height, width) to which frames are scaled.
            temperatures: {label: temperature by which its logits are divided}, of a calibrated run.

        Raises:
            UserError: the model cannot read a stream.
        """
        if not isinstance(model, StreamingModel):
            raise UserError(
                f"{type(model).__name__} reads whole clips; expected a model that carries a state from frame to frame, "
                "such as `vitx models 'lrcn_*'`, 'convlstm_*' or cnn_small"
            )
        self.num_frames = 0
        self.answers: collections.deque[Answer] = collections.deque(maxlen=MAX_HISTORY)
        self.milliseconds: collections.deque[float] = collections.deque(maxlen=MAX_HISTORY)
        self.state = model.with_input_shape(size=image_size).init_state(1)
        self._frames: collections.deque[np.ndarray] = collections.deque(maxlen=MAX_HISTORY)
        self._variables, self._names, self._temperatures = variables, names, temperatures or {}
        self._shape = Preprocessing((0.5,) * 3, (0.5,) * 3, image_size, None, 1)

        def step(variables: Any, frame: jax.Array, state: Any) -> tuple[dict[str, jax.Array], Any]:
            logits, state = model.apply(variables, task.normalise(frame), state, method="step")
            return task.outputs_by_label(logits, names), state

        self._step, self._presenter = jax.jit(step), presenter_for(task)
        self._compile(np.zeros((1, *image_size, 3), np.uint8))

    def __repr__(self) -> str:
        latency = f", {np.median(self.milliseconds):.2f} ms a frame" if self.milliseconds else ""
        return f"Stream({self.num_frames} frames{latency}, {self.state_bytes:,} bytes of state)"

    @property
    def state_bytes(self) -> int:
        """Bytes of the state; no frame changes them."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))

    def read(self, frame: np.ndarray) -> Answer:
        """Returns {label: {class: probability}} of all frames so far, this one included, most probable first.

        Args:
            frame: uint8[height, width, 3], RGB, 0 to 255; scaled to the size that the model was trained on.

        Raises:
            UserError: not such an array.
        """
        if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype != np.uint8:
            raise UserError(
                f"found an array {list(frame.shape)} of {frame.dtype}; expected a frame [height, width, 3] of uint8"
            )
        began = time.perf_counter()
        pixels = self._shape.fit(frame[None])
        answer, self.state = self._advance(pixels)
        self.milliseconds.append(1000 * (time.perf_counter() - began))
        self.num_frames += 1
        self.answers.append(answer)
        self._frames.append(pixels[0])
        return answer

    def _compile(self, pixels: UInt8[np.ndarray, "1 h w 3"]) -> None:
        """Compiles the step for the first state, and for those that it returns, which may be placed otherwise."""
        first = self.state
        for _ in range(2):
            _, self.state = self._advance(pixels)
        self.state = first

    def _advance(self, pixels: UInt8[np.ndarray, "1 h w 3"]) -> tuple[Answer, Any]:
        logits, state = self._step(self._variables, pixels, self.state)
        outputs = {label: np.asarray(row[0], np.float32) for label, row in logits.items()}
        outputs = scale_logits(outputs, self._temperatures)
        return self._presenter.answer(outputs, self._names, max(map(len, self._names.values()))), state

    def figure(self, label: str | None = None) -> Figure:
        """Draws the last frames, and below them how the probabilities of the most probable classes change.

        Args:
            label: the label to draw; None takes the first.

        Raises:
            UserError: no frame was read yet, or there is no such label.
        """
        if not self.answers:
            raise UserError("found a stream without frames; expected at least one: call read(frame) first")
        label = next(iter(self._names)) if label is None else label
        if label not in self._names:
            known = ", ".join(self._names)
            raise UserError(f"label is {label!r}; expected one of {known}{did_you_mean(label, self._names)}")
        numbers = np.arange(self.num_frames - len(self.answers), self.num_frames)
        values = {name: [100 * answer[label][name] for answer in self.answers] for name in self._names[label]}
        shown = sorted(values, key=lambda name: -max(values[name]))[:MAX_CLASSES]
        step = -(-len(numbers) // MAX_COLUMNS)
        columns = -(-len(numbers) // step)
        picked = np.minimum((step - 1) // 2 + step * np.arange(columns), len(numbers) - 1)
        # every picture stands over the places of its frames; the last one may have fewer
        ends = (numbers[0] - 0.5, numbers[0] + step * columns - 0.5)
        figure = Figure(figsize=(max(0.75 * columns, 4) + 1.9, 3.6), layout="constrained")
        grid = figure.add_gridspec(2, 1, height_ratios=[1, 3.2])
        axes = figure.add_subplot(grid[1])
        for name in sorted(shown, key=self._names[label].index):
            axes.plot(
                numbers, values[name], marker="o" if len(numbers) < 50 else "", markersize=3, label=plain_text(name)
            )
        axes.set(xlabel="frame", ylabel=plain_text(f"{label}, %"), ylim=(-3, 103), xlim=ends, xticks=numbers[picked])
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
        above = figure.add_subplot(grid[0], sharex=axes)
        for left, i in zip(ends[0] + step * np.arange(columns), picked, strict=True):
            extent = (left + 0.05 * step, left + 0.95 * step, 0, 1)
            above.imshow(self._frames[i], extent=extent, aspect="auto")
        above.set(ylim=(0, 1), xlim=ends)
        above.set_axis_off()
        add_fallback_fonts(figure)
        return figure

    def _repr_png_(self) -> bytes | None:  # how a notebook shows it
        return encode_png(self.figure(), dpi=130) if self.answers else None
