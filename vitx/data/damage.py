"""Decoding that notices damage: what the decoder marks as corrupt, and what it reports as an error."""

import logging
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import av
import av.logging


class Decoded(NamedTuple):
    """A decoded frame.

    Attributes:
        frame: the frame.
        problem: description of the damage that it shows, or that a frame before it had on which it may depend; None
            where the decoder found nothing wrong.
    """

    frame: av.VideoFrame
    problem: str | None


def decode_packets(packets: Iterable[av.Packet], decoder: str) -> Iterator[Decoded]:
    """Decodes packets, one at a time, and passes over those that the decoder refuses.

    Damage spreads to the frames that refer to a damaged one: it lasts until the next keyframe.

    Args:
        packets: packets in decoding order.
        decoder: FFmpeg's name of their decoder, whose messages are listened to.
    """
    problem, problem_before, key_time = None, None, None
    problems: dict[int, str] = {}
    for packet in packets:
        time = packet.dts if packet.pts is None else packet.pts
        if packet.is_keyframe and packet.size:
            problem, problem_before, key_time = None, problem, time
        frames, message = _decode(packet, decoder)
        problem = message or problem
        # Frames that are shown before a keyframe and decoded after it refer to frames before it.
        own = problem or (problem_before if None not in (time, key_time) and time < key_time else None)
        if own and time is not None:
            problems[time] = own
        for frame in frames:
            if frame.is_corrupt:
                problem = problem or "the decoder marks it as corrupt"
            time = frame.dts if frame.pts is None else frame.pts
            yield Decoded(frame, (problem if frame.is_corrupt or time is None else None) or problems.pop(time, None))


def _decode(packet: av.Packet, decoder: str) -> tuple[list[av.VideoFrame], str | None]:
    """Returns a packet's frames, and the first error that its decoder reports."""
    _listen()
    frames, refusal = [], None
    # With one decoder thread messages come from the thread that decodes.
    with av.logging.Capture() as messages:
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            refusal = error.strerror
    errors = [text.strip() for level, name, text in messages if level <= av.logging.ERROR and name == decoder]
    return frames, (errors[0] if errors else refusal)


def _listen() -> None:
    """Lets PyAV pass FFmpeg's errors on, which it drops unless somebody has set a level."""
    if av.logging.get_level() is None:
        # Only `Capture` is to have them: without it they would be logged, on many sound videos, too.
        logging.getLogger("libav").setLevel(logging.CRITICAL + 1)
        av.logging.set_skip_repeated(False)
        av.logging.set_level(av.logging.ERROR)
