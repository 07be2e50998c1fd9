"""Fonts for names of any script: DejaVu Sans, and installed fonts for the characters that it lacks."""

import functools
import itertools
from collections.abc import Mapping
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from vitx.console import JOINERS, print_message

BOX = "□"  # drawn for a character that no font has; DejaVu Sans has it
_reported: list[str] = []
Face = tuple[str, int]  # path of a font file and, of a collection (.ttc), the number of the face in it
Faces = Mapping[str, Face | None]  # of characters that DejaVu Sans lacks; None where no font has the character
DEJAVU = (str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 0)
_DEJAVU_CHARACTERS = frozenset(map(chr, FT2Font(DEJAVU[0]).get_charmap()))


def add_fallback_fonts(figure: Figure) -> None:
    """Lets a finished figure draw characters that DejaVu Sans lacks; its other texts stay as they are."""
    # a category has its tick label only once the ticks are computed
    ticks = [(axis, axis.get_ticklabels()) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    texts = figure.findobj(Text)
    faces = choose_faces("".join(text.get_text() for text in texts))
    families = [_register(*face) for face in dict.fromkeys(faces.values()) if face is not None]
    for axis, labels in ticks:
        names = [label.get_text() for label in labels]
        if (shown := [_put_boxes(name, faces) for name in names]) != names:
            axis.set_ticks(axis.get_ticklocs(), shown)  # drawing computes the labels again, from the ticks
    for text in texts:
        if not faces.keys().isdisjoint(text.get_text()):
            text.set_text(_put_boxes(text.get_text(), faces))
            text.set_fontfamily(list(dict.fromkeys([*text.get_fontfamily(), *families])))


def split_by_font(text: str) -> list[tuple[str, Face]]:
    """Returns the parts of a text, in their order, with the font of each; characters of no font are boxes."""
    faces, face = choose_faces(text), DEJAVU
    # A joiner shapes the letters beside it, so it stays in their part.
    drawn = [(x, face := face if x in JOINERS else faces.get(x) or DEJAVU) for x in _put_boxes(text, faces)]
    parts = itertools.groupby(drawn, key=lambda pair: pair[1])
    return [("".join(character for character, _ in pairs), face) for face, pairs in parts]


def choose_faces(text: str) -> Faces:
    """Returns the font of each character that DejaVu Sans lacks; reports those that no font has, once a process."""
    missing = frozenset(filter(str.isprintable, text)) - _DEJAVU_CHARACTERS
    faces = _search_fonts(missing) if missing else {}
    absent = sorted(x for x, face in faces.items() if face is None)
    if absent and not _reported:  # the frames of one video may have new ones again and again
        _reported.extend(absent)
        advice = "pictures have boxes instead; install a font that has them, such as Noto (package fonts-noto)"
        print_message(f"no installed font has the characters {' '.join(absent[:50])}: {advice}")
    return faces


@functools.lru_cache(1024)
def _search_fonts(missing: frozenset[str]) -> Faces:
    """Returns a font for each character, of few fonts: the one that has most of them, then most of the rest."""
    # LastResort has boxes for everything; what `_register` has added is in the list under its own name, too.
    fonts = [x for x in font_manager.fontManager.ttflist if "LastResort" not in x.fname and not _is_registered(x)]
    # Regular before bold and italic, sans-serif first, colour last: it may have no outlines.
    fonts.sort(key=lambda x: ("Color" in x.name, x.style != "normal", x.weight not in (400, 500), "Sans" not in x.name))
    found: dict[Face, frozenset[str]] = {}
    for face in dict.fromkeys((x.fname, getattr(x, "index", 0)) for x in fonts):  # no index before 3.11
        found[face] = _find_characters(*face, missing)
        if found[face] == missing:
            break
    faces: dict[str, Face | None] = dict.fromkeys(missing)
    while found and found[best := max(found, key=lambda face: len(found[face]))]:
        faces |= dict.fromkeys(found[best], best)
        found = {face: characters - found[best] for face, characters in found.items()}
    return faces


def _find_characters(path: str, index: int, wanted: frozenset[str]) -> frozenset[str]:
    """Returns the characters that a font has; none for a font that is damaged or gone."""
    try:
        font = FT2Font(path, **({"face_index": index} if index else {}))
        # loading a glyph raises where its outline is damaged
        return frozenset(x for x in wanted if (glyph := font.get_char_index(ord(x))) and font.load_glyph(glyph))
    except (OSError, RuntimeError, ValueError):
        return frozenset()


def _put_boxes(text: str, faces: Faces) -> str:
    return "".join(BOX if faces.get(x, DEJAVU) is None else x for x in text)


def _is_registered(entry: font_manager.FontEntry) -> bool:
    return entry.name.startswith(f"{entry.fname}#")


def _register(path: str, index: int) -> str:
    """Returns a family of matplotlib that is a face alone: under its own name, matplotlib may find another weight."""
    name, entries = f"{path}#{index}", font_manager.fontManager.ttflist
    if all(entry.name != name for entry in entries):
        options = {"index": index} if index else {}
        entries.append(font_manager.FontEntry(fname=path, name=name, weight=400, size="scalable", **options))
    return name
