"""Decoding of packets, which leaves out frames that are not needed, and notices damage.

A frame is damaged where a decoder marks it as corrupt, reports an error for it, or refuses its packet.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Set
from typing import NamedTuple

import av
import av.logging
from av.video.codeccontext import VideoCodecContext

SKIPPING = ("h264", "hevc", "mpeg4", "mpeg2video")
"""Decoders whose `skip_frame` may change between packets, so that a frame that no other refers to can be left out."""

MAX_DELAY = 32
"""Packets that a decoder takes in before it returns the frame of the first: more than any codec reorders."""

CORRUPT = "the decoder marks it as corrupt"

HARMLESS = ("mmco: unref short failure",)
"""Errors that change no pixel: an H.264 stream unreferences a frame that a seek or a cut has skipped."""


class Decoded(NamedTuple):
    """A decoded frame.

    Attributes:
        frame: the frame.
        problem: description of the damage that it shows, or that a frame before it had on which it may depend; None
            where the decoder found nothing wrong.
    """

    frame: av.VideoFrame
    problem: str | None


def decode_packets(
    packets: Iterable[av.Packet],
    decoder: VideoCodecContext,
    needed: Set[int] | None = None,
    observe: Callable[[av.VideoFrame], None] | None = None,
) -> Iterator[Decoded]:
    """Decodes packets lazily, and skips those that the decoder refuses.

    Damage spreads to the frames that refer to a damaged one: it lasts until the next keyframe.

    Args:
        packets: packets in decoding order.
        decoder: decoder of the packets.
        needed: presentation times of the frames to return; others are not even decoded where no frame refers to
            them. None returns all.
        observe: called with every frame that is decoded, returned or not.
    """
    _enable_messages()
    # With one decoder thread FFmpeg logs in the calling thread, so `Capture` gets the messages of this decoder alone.
    capture, may_skip, skipped = av.logging.Capture(), needed is not None and decoder.name in SKIPPING, None
    problem, problem_before, key_time = None, None, None
    problems: dict[int, str] = {}
    recent: deque[int | None] = deque(maxlen=MAX_DELAY)  # times of packets, in decoding order

    def precedes_keyframe(time: int | None) -> bool:
        """Returns whether a frame is shown before the last keyframe: then it refers to frames before that one."""
        return None not in (time, key_time) and time < key_time

    for packet in packets:
        # Whether a frame may be skipped is set before each packet. While this loop runs Python, other threads wait for
        # the GIL: it makes few calls.
        time = packet.pts
        skip = "NONREF" if may_skip and time not in needed and packet.size else "DEFAULT"
        if skip != skipped:
            decoder.skip_frame = skipped = skip
        # The decoder writes into the memory of frames that nobody holds, which is still in the processor's cache.
        frames, frame, refusal = (), None, None
        with capture as messages:
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                refusal = error.strerror
        time = packet.dts if time is None else time
        recent.append(time)
        if packet.is_keyframe and packet.size:
            problem, problem_before, key_time = None, problem, time
        if refusal or messages:
            texts = [text.strip() for _, name, text in messages if name == decoder.name]
            problem = problem or next((text for text in texts if text not in HARMLESS), refusal)
            messages.clear()
        if own := problem or (problem_before if problem_before and precedes_keyframe(time) else None):
            problems[time] = own
        for frame in frames:
            if observe is not None:
                observe(frame)
            if frame.is_corrupt:
                time = _time_of(frame)
                # Its damage is known only now, and packets that were decoded meanwhile may depend on it.
                if is_before := precedes_keyframe(time):
                    problem_before = problem_before or CORRUPT
                else:
                    problem = problem or CORRUPT
                decoded_since = list(recent)[recent.index(time) + 1 :] if time in recent else []
                for other in [time, *decoded_since]:
                    if precedes_keyframe(other) or not is_before:
                        problems.setdefault(other, CORRUPT)
            if needed is None or frame.pts in needed:
                yield Decoded(frame, problems.pop(_time_of(frame), None) if problems else None)


def _time_of(frame: av.VideoFrame) -> int | None:
    """Returns the presentation time of a frame, or its decoding time where it has none."""
    return frame.dts if frame.pts is None else frame.pts


def _enable_messages() -> None:
    """Lets PyAV pass FFmpeg's errors on, which it drops unless a level is set."""
    if av.logging.get_level() is None:
        # Only `Capture` handles these messages: logged, they would appear for many intact videos.
        logging.getLogger("libav").setLevel(logging.CRITICAL + 1)
        av.logging.set_level(av.logging.ERROR)
    if av.logging.get_skip_repeated():
        av.logging.set_skip_repeated(False)  # the same damage may be met twice
