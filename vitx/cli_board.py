"""`vitx board`: runs in the browser."""

import argparse
from typing import Any

from vitx.cli_settings import load_parts
from vitx.console import print_text
from vitx.errors import UserError
from vitx.storage import as_path, local_path

PORT = 8765


def add_commands(commands: Any) -> None:
    """Adds the command to the parser of `vitx`."""
    board = commands.add_parser(
        "board",
        help="show runs in the browser: curves, confusion matrices, mistakes as clips, explanations",
        description="Serves one page about runs on this machine alone (127.0.0.1), until Ctrl-C. From another machine: "
        "ssh -L PORT:127.0.0.1:PORT HOST.",
    )
    board.add_argument(
        "runs", nargs="+", type=as_path, metavar="RUNS", help="folders of runs, of ablations, or that hold such"
    )
    board.add_argument("--port", type=int, default=PORT, help=f"port of the page; 0 takes a free one (default: {PORT})")
    board.add_argument("--open", action="store_true", help="open the page in the browser")
    board.add_argument("--no_browser", dest="open", action="store_false", help="print the address alone (default)")
    board.add_argument("--experiment", type=local_path, help="file that defines your own parts; it is executed")
    board.set_defaults(command=_board)


def _board(options: argparse.Namespace, _: list[str]) -> None:
    if not 0 <= options.port < 2**16:
        raise UserError(f"--port is {options.port}; expected 1 to 65535, or 0 for a free one")
    from vitx.board.server import open_server
    from vitx.board.shown_runs import ShownRuns
    from vitx.compiled_programs import keep_programs

    load_parts(options.experiment)
    runs = ShownRuns(options.runs)
    keep_programs()
    with open_server(runs, options.port) as server:
        address = f"http://127.0.0.1:{server.server_port}/"
        count = f"{len(runs)} run{'' if len(runs) == 1 else 's'}"
        print_text(f"{count} at {address} (Ctrl-C ends)", error=True)
        if options.open:
            import webbrowser

            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print_text("ended", error=True)
