"""A board of the small ablation, served over HTTP."""

import http.client
import json
import threading

import pytest

from tests.ablations.conftest import done, tiny, two_rows  # noqa: F401  the same folder, which is trained once
from vitx.board.server import open_server
from vitx.board.shown_runs import ShownRuns


class Client:
    """Asks a server, one connection a request."""

    def __init__(self, port):
        self.port = port

    def request(self, path, method="GET", **headers):
        """Returns (status, headers, body)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host="Host" in headers)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def get(self, path):
        """Returns the JSON at /api/runs/PATH."""
        status, headers, body = self.request(f"/api/runs{path}")
        assert status == 200 and headers["Content-Type"] == "application/json", body
        return json.loads(body)

    def error(self, path, status=404):
        """Returns the message of the error at a path."""
        found, _, body = self.request(path)
        assert found == status, body
        return json.loads(body)["error"]


@pytest.fixture(scope="module")
def serve():
    """Returns a function that serves folders and returns a client."""
    servers = []

    def start(*folders):
        server = open_server(ShownRuns(folders), 0)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return Client(server.server_port)

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def client(done, serve):  # noqa: F811
    """A board of the ablation's four runs."""
    return serve(done[0])
