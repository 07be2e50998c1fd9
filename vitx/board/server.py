"""The server of a board: one page, its data as JSON, clips as MP4; on this machine alone, and read only.

Requests name runs, splits, labels and clips by numbers and by words of fixed lists: no path of a request reaches the
disk.
"""

import dataclasses
import errno
import http.server
import importlib.resources
import re
import socketserver
import sys
import traceback
from collections.abc import Callable
from typing import Any

from vitx import strict_json
from vitx.board.clips import BoundedCache, encode_clip
from vitx.board.explanations import DEFAULT, Explainer
from vitx.board.shown_runs import ShownRuns
from vitx.console import print_text
from vitx.data.sources import SPLITS
from vitx.errors import RunError, UserError
from vitx.explain.methods import METHODS

HOST = "127.0.0.1"
HOST_HEADER = r"(127\.0\.0\.1|localhost)(:[0-9]{1,5})?"  # any port: ssh may forward another one
MAX_BYTES = 96 * 2**20  # of clips in memory
SCRIPTS = ("board", "clips", "curves", "shared", "tables")
PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/board.css": ("board.css", "text/css; charset=utf-8"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in SCRIPTS},
}
JSON, MP4 = "application/json", "video/mp4"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; media-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
# Digits are few, so that no number is too large for NumPy.
NUMBER, SPLIT, WORD = r"([0-9]{1,9})", rf"({'|'.join(SPLITS)})", r"([a-z0-9_]{1,64})"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a request is answered with.

    Attributes:
        content: bytes of the body.
        kind: media type.
    """

    content: bytes
    kind: str = JSON


class Board:
    """Answers requests about runs."""

    def __init__(self, runs: ShownRuns) -> None:
        """Holds an empty cache of clips.

        Args:
            runs: the runs.
        """
        self._runs, self._clips, self._explainer = runs, BoundedCache(MAX_BYTES), Explainer(runs)

    def answer(self, path: str) -> Answer | None:
        """Returns the answer to a path, None where there is nothing of that name."""
        if path in PAGE:
            name, kind = PAGE[path]
            return Answer(importlib.resources.files("vitx.board").joinpath("page", name).read_bytes(), kind)
        for pattern, route in ROUTES:
            if found := re.fullmatch(pattern, path, re.ASCII):
                words = (int(word) if word.isdecimal() else word for word in found.groups())
                return route(self, *words)
        return None

    def overview(self) -> Answer:
        """Returns all runs, the settings that differ, and the methods of explanation."""
        return _json(self._runs.overview() | {"methods": [DEFAULT, *METHODS]})

    def curves(self, run: int) -> Answer:
        """Returns the learning curves of a run."""
        return _json(self._runs.curves(run))

    def evaluated_splits(self, run: int) -> Answer:
        """Returns the evaluated splits of a run."""
        return _json(self._runs.evaluated_splits(run))

    def evaluation(self, run: int, split: str) -> Answer:
        """Returns the metrics and tables of a split."""
        return _json(self._runs.split(run, split).overview())

    def mistakes(self, run: int, split: str, label: int) -> Answer:
        """Returns lists of clips of which a run is wrong or unsure."""
        evaluated = self._runs.split(run, split)
        return _json(evaluated.mistakes(evaluated.label(label)))

    def cell(self, run: int, split: str, label: int, true: int, predicted: int) -> Answer:
        """Returns the clips behind a cell of a confusion matrix."""
        evaluated = self._runs.split(run, split)
        return _json(evaluated.cell(evaluated.label(label), true, predicted))

    def example(self, run: int, split: str, clip: int) -> Answer:
        """Returns what is known of a clip."""
        return _json(self._runs.split(run, split).example(clip))

    def clip(self, run: int, split: str, clip: int) -> Answer:
        """Returns a clip as a video."""
        evaluated = self._runs.split(run, split)
        evaluated.row(clip)
        video = self._clips.get(
            (run, split, clip, evaluated.version), lambda: encode_clip(evaluated.clips.frames(clip))
        )
        return Answer(video, MP4)

    def explanation(self, run: int, split: str, clip: int, label: int, class_number: int, method: str) -> Answer:
        """Returns which parts of a clip speak for a class."""
        return Answer(self._explainer.explain(run, split, clip, label, class_number, method))

    def picture(self, run: int, number: int) -> Answer:
        """Returns a picture of a run's report."""
        name, content = self._runs.picture(run, number)
        return Answer(content, "image/gif" if name.endswith(".gif") else "image/png")


Route = Callable[..., Answer]
RUN = rf"/api/runs/{NUMBER}"
ROUTES: tuple[tuple[str, Route], ...] = (
    (r"/api/runs", Board.overview),
    (rf"{RUN}/curves", Board.curves),
    (rf"{RUN}/evaluated", Board.evaluated_splits),
    (rf"{RUN}/pictures/{NUMBER}", Board.picture),
    (rf"{RUN}/{SPLIT}", Board.evaluation),
    (rf"{RUN}/{SPLIT}/mistakes/{NUMBER}", Board.mistakes),
    (rf"{RUN}/{SPLIT}/cells/{NUMBER}/{NUMBER}/{NUMBER}", Board.cell),
    (rf"{RUN}/{SPLIT}/examples/{NUMBER}", Board.example),
    (rf"{RUN}/{SPLIT}/clips/{NUMBER}\.mp4", Board.clip),
    (rf"{RUN}/{SPLIT}/explanations/{NUMBER}/{NUMBER}/{NUMBER}/{WORD}", Board.explanation),
)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET requests to this machine's own name."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "vitx", ""
    timeout = 60  # seconds that a connection may be silent
    server: "Server"

    def do_GET(self) -> None:
        """Answers with a part of the page, with data, or with {"error": message}."""
        if not re.fullmatch(HOST_HEADER, self.headers.get("Host", ""), re.ASCII):
            # Another site can point its name at this machine; its pages must not read the runs.
            self._send(403, _error(f"found another Host than {HOST} or localhost"))
            return
        if self.path != "/" and self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            # Nor may they make it compute explanations; a link to the page is all that they may have.
            self._send(403, _error("found a request by another site"))
            return
        try:
            answer = self.server.board.answer(self.path.partition("?")[0])
        except (UserError, RunError) as error:
            self._send(404, _error(str(error)))
        except Exception as error:
            print_text(traceback.format_exc(), lines=True, error=True)
            self._send(500, _error(f"{type(error).__name__}: {error} (the terminal shows where)"))
        else:
            self._send(200, answer) if answer else self._send(404, _error("there is nothing of this name"))

    def _refuse(self) -> None:
        self.close_connection = True  # a body may follow that nobody reads
        self._send(405, _error(f"found {self.command}; expected GET"))

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def _send(self, status: int, answer: Answer) -> None:
        content, headers = answer.content, dict(HEADERS)
        part = _byte_range(self.headers.get("Range"), len(content)) if status == 200 else None
        if part:  # Safari asks for videos in parts
            status, headers["Content-Range"] = 206, f"bytes {part.start}-{part.stop - 1}/{len(content)}"
            content = content[part]
        self.send_response(status)
        if status == 405:
            headers["Allow"] = "GET"
        headers |= {"Content-Type": answer.kind, "Content-Length": str(len(content)), "Accept-Ranges": "bytes"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing: every refresh of a page would be a line."""


class Server(http.server.ThreadingHTTPServer):
    """A server on loopback, with a thread for each connection.

    Attributes:
        board: what answers requests.
    """

    daemon_threads = True  # an explanation that is being computed does not hold up Ctrl-C

    def __init__(self, board: Board, port: int) -> None:
        self.board = board
        super().__init__((HOST, port), Handler)

    def server_bind(self) -> None:
        """Binds the port, without the request for a host's name that the base class sends."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints nothing of a browser that has closed its connection."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            print_text(traceback.format_exc(), lines=True, error=True)


def open_server(runs: ShownRuns, port: int) -> Server:
    """Returns a server that listens and does not serve yet.

    Args:
        runs: the runs that it shows.
        port: port on 127.0.0.1; 0 takes a free one.

    Raises:
        UserError: the port is in use, or needs more rights.
    """
    try:
        return Server(Board(runs), port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} of {HOST} is in use; choose another --port, or 0 for a free one") from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise UserError(f"port {port} needs more rights; expected 1024 to 65535, or 0 for a free one") from error
        raise


def _json(data: Any) -> Answer:
    return Answer(strict_json.dumps(data).encode())


def _error(message: str) -> Answer:
    return _json({"error": message})


def _byte_range(header: str | None, size: int) -> slice | None:
    """Returns the part of a body that "bytes=FIRST-LAST" asks for; None for the whole."""
    found = re.fullmatch(r"bytes=([0-9]{1,18})-([0-9]{0,18})", header or "", re.ASCII)
    if not found or int(found[1]) >= size:
        return None
    last = min(int(found[2] or size - 1), size - 1)
    return slice(int(found[1]), last + 1) if last >= int(found[1]) else None
