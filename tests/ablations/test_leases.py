"""A cell is leased to one process; a lease is released, or expires with its owner."""

import json
import os
import subprocess
import sys
import time

import pytest

from vitx import locks, storage
from vitx.ablations.leases import Leases


@pytest.fixture(autouse=True)
def _short_leases(monkeypatch):
    monkeypatch.setattr(locks, "LEASE_SECONDS", 0.6)


def write_lease(folder, name, **record):
    """Writes a lease as another machine would."""
    storage.create_folder(folder / name / ".lock")
    owner = {"id": "x", "host": "elsewhere", "pid": 1, "machine": "another", "beat": 0, **record}
    storage.write_bytes(folder / name / ".lock" / "00000001.json", json.dumps(owner).encode())


def test_a_cell_is_leased_to_one_process_at_a_time(folder):
    mine, theirs = Leases(folder), Leases(folder)
    lease = mine.take("cell")
    assert theirs.take("cell") is None and theirs.take("other") is not None
    time.sleep(1.0)  # longer than a lease: the heartbeat keeps it
    assert theirs.take("cell") is None
    lease.release()
    theirs.take("cell").release()


def test_a_lease_whose_heartbeat_stands_still_is_taken_over(folder):
    leases = Leases(folder)
    write_lease(folder, "cell")
    assert leases.take("cell") is None
    write_lease(folder, "cell", beat=1)
    time.sleep(0.7)
    assert leases.take("cell") is None  # it beat meanwhile
    time.sleep(0.7)
    leases.take("cell").release()


def test_a_lease_of_a_dead_process_of_this_machine_is_taken_over_at_once(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as owner:
        write_lease(tmp_path, "cell", pid=owner.pid, machine=locks._machine())
        assert Leases(tmp_path).take("cell") is None
        owner.kill()
        owner.wait()
    assert os.path.exists(tmp_path / "cell")
    Leases(tmp_path).take("cell").release()
