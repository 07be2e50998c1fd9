"""Explanations on demand: one at a time, the results kept in memory within a bound."""

import base64
from collections.abc import Hashable
from pathlib import PurePath

from vitx import strict_json
from vitx.board.clips import BoundedCache
from vitx.board.evaluated import EvaluatedSplit
from vitx.board.shown_runs import ShownRuns
from vitx.errors import UserError
from vitx.explain.explanation import WRITERS, Explanation
from vitx.explain.methods import METHODS
from vitx.run import Run, load_run

MAX_BYTES = 32 * 2**20  # of explanations in memory
DEFAULT = "default"  # stands for the first method that works for the model


class Explainer:
    """Explains clips of runs; holds the variables of the run that was explained last."""

    def __init__(self, runs: ShownRuns) -> None:
        """Loads nothing yet."""
        # One at a time: compiling twice at once takes twice the memory.
        self._runs, self._cache = runs, BoundedCache(MAX_BYTES, max_workers=1)
        self._loaded: tuple[tuple[int, Hashable], Run] | None = None  # by place and version of the predictions

    def explain(self, index: int, split: str, clip: int, label: int, class_number: int, method: str) -> bytes:
        """Returns title, method, importance over time and video of an explanation, as JSON.

        Args:
            index: place of the run.
            split: name of the split.
            clip: index of the clip in the split.
            label: place of the label among those of the run.
            class_number: place of the class among those of the label.
            method: name in `METHODS`, or "default".

        Raises:
            UserError: there is no such label, class or method; see also `Run.explain`.
        """
        if method != DEFAULT and method not in METHODS:
            raise UserError(f"found the method {method}; expected one of {', '.join(METHODS)}")
        evaluated = self._runs.split(index, split)
        evaluated.row(clip)
        chosen = evaluated.choose(label, class_number)

        def create() -> bytes:
            explanation = self._explain(index, evaluated, clip, chosen, None if method == DEFAULT else method)
            video = base64.b64encode(WRITERS[".mp4"](explanation)).decode()
            return strict_json.dumps(
                {
                    "title": explanation.title,
                    "method": explanation.method,
                    "class": explanation.class_name,
                    "over_time": explanation.over_time,
                    "video": f"data:video/mp4;base64,{video}",
                }
            ).encode()

        key = ("explanation", index, split, evaluated.version, clip, *chosen, method)
        return self._cache.get(key, create)

    def _explain(
        self, index: int, evaluated: EvaluatedSplit, clip: int, chosen: tuple[str, str], method: str | None
    ) -> Explanation:
        frames, version = evaluated.clips.frames(clip), (index, evaluated.version)
        label, class_name = chosen
        if self._loaded is None or self._loaded[0] != version:
            self._loaded = None  # first, so that two runs never share the device
            self._loaded = version, _load_evaluated(self._runs.folder(index).path, evaluated.step)
        return self._loaded[1].explain(frames, method=method, label=label, class_name=class_name)


def _load_evaluated(path: PurePath, step: int) -> Run:
    """Returns a run at the checkpoint that was evaluated.

    Raises:
        UserError: the checkpoint is neither the best nor the last one any more.
    """
    run = load_run(path)
    if run.step != step and (run := load_run(path, "last")).step != step:
        raise UserError(
            f"the predictions are those of step {step}, whose checkpoint {path} has no more; evaluate again: "
            f"vitx evaluate {path}"
        )
    return run
