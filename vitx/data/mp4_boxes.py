"""Number of samples that an mp4 or mov file claims, read from its boxes before FFmpeg allocates memory for them.

FFmpeg (8, 2026-11) allocates tens of bytes for every sample, and again for each edit that shows it. A table of
samples of one size, a fragment of identical samples, and a list of edits claim any number of them in a few bytes.
"""

import struct
from io import BufferedIOBase

MAX_BOXES = 1_000_000

_PARENTS = frozenset(
    b"moov hoov trak mdia minf stbl edts mvex moof traf udta meta dinf tref wave sinf schi ilst wide free skip".split()
)
_CLAIMS = {b"stsz": 8, b"trun": 4, b"elst": 4}  # boxes that claim samples, and the offset of the number in their body


def find_excess(file: BufferedIOBase) -> str | None:
    """Returns a description of what a file claims as mp4 or mov beyond what its bytes can hold, or None.

    Each sample takes at least one byte, however often edits show it. Only the headers of boxes and those numbers are
    read; a file without boxes takes a few large steps.
    """
    file.seek(0)
    if file.read(3) == b"ID3":  # FFmpeg skips such a tag and looks for boxes behind it
        return "to be music with a tag"
    num_bytes = file.seek(0, 2)
    ranges, boxes, found = [(0, num_bytes)], 0, dict.fromkeys(_CLAIMS, 0)
    while ranges:
        at, end = ranges.pop()
        file.seek(at)
        header = file.read(20)
        if end - at < 8 or len(header) < 8:
            continue
        size, name = struct.unpack_from(">I4s", header)
        body = at + 8
        if size == 1 and len(header) >= 16:
            (size,), body = struct.unpack_from(">Q", header, 8), at + 16
        stop = end if size == 0 else min(at + size, end)
        if stop < body:
            continue
        boxes += 1
        if boxes > MAX_BOXES:
            return f"more than {MAX_BOXES:,} boxes"
        if name == b"cmov":
            return "compressed headers"
        ranges.append((stop, end))
        if name in _PARENTS:
            ranges.append((body + 4 * (name == b"meta"), stop))
        elif name in _CLAIMS:
            file.seek(body + _CLAIMS[name])
            (count,) = struct.unpack(">I", file.read(4).rjust(4, b"\0"))
            found[name] = max(found[name], count) if name == b"elst" else found[name] + count
        elif name == b"stsd":  # FFmpeg reads boxes among its descriptions, too
            file.seek(body)
            descriptions = file.read(min(stop - body, 2**20))
            if any(claim in descriptions for claim in _CLAIMS):
                return "tables inside of its stsd box"
    samples, edits = found[b"stsz"] + found[b"trun"], max(found[b"elst"], 1)
    return f"{samples:,} samples, shown by {edits:,} edits" if samples * edits > num_bytes else None
