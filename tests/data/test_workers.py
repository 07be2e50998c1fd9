"""Processes that decode end with the process that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grain
import pytest

from vitx.data.pipeline import Data
from vitx.worker_processes import end_with_parent

READ = """
import dataclasses, sys
from tests.data.test_workers import Endless
from vitx.data.pipeline import Data

data = Data(Endless(), num_frames=2, image_size=(8, 8), batch_size=2, num_workers=2, prefetch_batches=2)
for batch in data.train_batches(Endless(), 0, range(1000)):
    print("batch", flush=True)
"""
SPAWNED = """
import multiprocessing, time
from vitx.worker_processes import end_with_parent

def work(queue):
    end_with_parent(0, 1)
    queue.put(None)
    time.sleep(600)

fork = multiprocessing.get_context("fork")  # Grain spawns; this is quicker
queue = fork.Queue()
fork.Process(target=work, args=(queue,)).start()
queue.get()
print("batch", flush=True)
time.sleep(600)
"""
STARTED = """
import subprocess, sys
child = "import time; from vitx.worker_processes import stop_with_parent; stop_with_parent(); print(flush=True)"
worker = subprocess.Popen([sys.executable, "-c", child + "; time.sleep(600)"], stdout=subprocess.PIPE)
worker.stdout.readline()
print("batch", flush=True)
worker.wait()
"""


class Endless:
    """A dataset of one video."""

    label_names = {"place": ("here",)}  # noqa: RUF012
    split = "train"

    def open(self, split):
        return self

    def __len__(self):
        return 50

    def __getitem__(self, index):
        import numpy as np

        from vitx.data.encoding import encode_video

        return {"video": encode_video(np.zeros((4, 8, 8, 3), np.uint8)), "labels": {"place": 0}}


def test_the_pipeline_lets_its_workers_end_with_their_parent(monkeypatch):
    given = []
    monkeypatch.setattr(grain.IterDataset, "mp_prefetch", lambda self, *hooks: given.append(hooks) or (_ for _ in ()))
    data = Data(Endless(), num_frames=2, image_size=(8, 8), batch_size=2, num_workers=2)
    list(data.train_batches(Endless(), 0, range(9)))
    list(data.eval_batches(Endless()))
    assert len(given) == 2
    for workers, started in given:
        assert workers.num_workers == 2 and started is end_with_parent


def find_children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are counted in /proc")
@pytest.mark.parametrize("program", [pytest.param(READ, marks=pytest.mark.slow), SPAWNED, STARTED])
def test_workers_end_when_their_parent_is_killed(program, pytestconfig):
    root = str(pytestconfig.rootpath)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, *sys.path])}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, cwd=root) as parent:
        parent.stdout.readline()
        workers = find_children(parent.pid)
        os.kill(parent.pid, signal.SIGKILL)
    assert workers
    deadline = time.monotonic() + 8
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [pid for pid in workers if is_alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
