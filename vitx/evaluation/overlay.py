"""Videos with their labels drawn on the frames: the answer for the whole video, or of the window at each time.

In shapes: h height, w width of a frame; n windows.
"""

import bisect
import functools
import itertools
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from vitx.console import escape
from vitx.data.encoding import redraw
from vitx.data.file_kinds import read_video
from vitx.data.windows import MAX_SECONDS
from vitx.evaluation.predictor import Predictor, VideoPrediction
from vitx.evaluation.segments import cell_bounds
from vitx.fonts import Face, choose_faces, split_by_font
from vitx.storage import atomic_path

LEAST_SIDE = 240  # pixels that the shorter side of small videos is enlarged to: text needs them
MAX_LABELS = 4  # labels that are drawn; more would hide the video
DARKNESS = 0.65  # of the band behind the text
BASELINE = 0.36  # below the middle of a line, in parts of the size of its font


def write_overlay(prediction: VideoPrediction, predictor: Predictor, path: PurePath) -> None:
    """Writes a video with its labels as an mp4 file of the same frame rate, without sound.

    Args:
        prediction: a video that was read, whole or in sliding windows.
        predictor: what predicted it.
        path: path of the new file.

    Raises:
        VideoError: the video cannot be read or encoded.
    """
    texts = [lines[:MAX_LABELS] for lines in caption_windows(prediction, predictor)]
    choose_faces("".join(itertools.chain(*texts)))  # one message has the characters that no font has
    changes = cell_bounds(prediction.windows)[1:-1].tolist()

    def draw(frame: UInt8[np.ndarray, "h w 3"], seconds: float) -> UInt8[np.ndarray, "h w 3"]:
        return draw_caption(frame, texts[bisect.bisect_right(changes, seconds)])

    with atomic_path(path) as draft, open(draft, "w+b") as target:
        source, reading = read_video(prediction.path), predictor.reader.reading
        redraw(source, target, draw, least_side=LEAST_SIDE, seconds=MAX_SECONDS, read=reading)


def caption_windows(prediction: VideoPrediction, predictor: Predictor) -> list[tuple[str, ...]]:
    """Returns the lines of text of each window: the best class of each label with its probability."""
    captions = []
    for number in range(len(prediction.windows)):
        outputs = {label: values[number] for label, values in prediction.outputs.items()}
        answer = predictor.presenter.answer(outputs, predictor.names, 1)
        lines = (escape(f"{label}: {predictor.presenter.format_answer(best)}") for label, best in answer.items())
        captions.append(tuple(lines))
    return captions


def draw_caption(frame: UInt8[np.ndarray, "h w 3"], lines: Sequence[str]) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a frame with lines of text on a dark band at its bottom; text that is too wide is shrunk."""
    height, width = frame.shape[:2]
    size = max(min(height, width) // 24, 13)
    margin = size // 2
    row = round(1.35 * size)
    top = max(height - row * len(lines) - margin, 0)
    drawn = frame.copy()
    drawn[top:] = ((1 - DARKNESS) * drawn[top:]).astype(np.uint8)
    image = Image.fromarray(drawn)
    canvas = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        left, middle = margin, top + margin / 2 + row * (number + 0.5)
        for text, font in _fit_line(line, size, width - 2 * margin):
            place = (left, round(middle + BASELINE * font.size))  # fonts share a baseline, not a middle
            canvas.text(place, text, font=font, fill=(255, 255, 255), anchor="ls")
            left += font.getlength(text)
    return np.asarray(image)


def _fit_line(line: str, size: int, width: int) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    """Returns the parts of a line and their fonts, of a size at which it fits; at least of nine pixels, and cut off."""
    parts = split_by_font(line)
    length = sum(_font(face, size).getlength(text) for text, face in parts)
    size = size if length <= width else max(int(size * width / length), 9)
    return [(text, _font(face, size)) for text, face in parts]


@functools.lru_cache(256)
def _font(face: Face, size: int) -> ImageFont.FreeTypeFont:
    path, index = face
    return ImageFont.truetype(path, size, index)
