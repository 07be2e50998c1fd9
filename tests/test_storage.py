"""Files and folders on a local disk and in buckets of emulators."""

import concurrent.futures
import contextlib
import errno
import importlib.util
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vitx import locks, storage
from vitx.errors import RunError, UserError
from vitx.local_copies import local_copy
from vitx.locks import lock_folder
from vitx.rows import RowsWriter, read_rows
from vitx.storage import as_path
from vitx.stores import is_bucket, report_io_errors

# paths


@pytest.mark.parametrize("text", ["gs://bucket/a/b", "s3://bucket/a"])
def test_a_url_keeps_both_slashes(text, google_store, amazon_store):
    path = as_path(text)
    assert str(path) == os.fspath(path) == text
    assert str(path / "config.json") == f"{text}/config.json"
    assert str(as_path(path)) == text
    assert str(as_path(f"{text}/")) == text
    assert is_bucket(path)
    assert str(as_path("gcs://bucket/run")) == "gs://bucket/run"


def test_local_paths_stay_as_they_were_typed(tmp_path):
    for text in ("runs/a", "./a", str(tmp_path), "a:b/c"):
        assert str(as_path(text)) == str(Path(text))
        assert not is_bucket(as_path(text))
    assert as_path("file:///tmp/run") == Path("/tmp/run")


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("az://bucket/run", ["az://", "adlfs", "AZURE_STORAGE_ACCOUNT_NAME"]),
        ("ftp://host/run", ["ftp://", "vitx[gcs]", "vitx[s3]"]),
        ("gs:/bucket/run", ["gs:/bucket/run", "two slashes"]),
        ("gs://", ["bucket"]),
        ("s3:///run", ["bucket"]),
    ],
)
def test_a_url_that_cannot_be_opened_is_refused(text, needed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        as_path(text)
    assert all(part in str(error.value) for part in needed)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("scheme", "extra", "variable"), [("gs", "gcs", "GOOGLE"), ("s3", "s3", "AWS_ACCESS_KEY_ID")])
def test_a_store_without_its_package_names_the_extra_and_the_credentials(scheme, extra, variable, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"vitx\[{extra}\].*{variable}"):
        as_path(f"{scheme}://bucket/run")


# files


def test_files_are_written_read_listed_and_removed(folder):
    assert not storage.exists(folder / "a.json")
    storage.write_json(folder / "a.json", {"x": [1, 2]})
    storage.write_bytes(folder / "b" / "c" if is_bucket(folder) else folder / "c", b"\0\1")
    assert storage.read_json(folder / "a.json") == {"x": [1, 2]}
    assert storage.is_file(folder / "a.json") and not storage.is_folder(folder / "a.json")
    assert storage.is_folder(folder) and not storage.is_file(folder)
    assert storage.names_in(folder) == ["a.json", "b" if is_bucket(folder) else "c"]
    assert storage.names_in(folder / "missing") == []
    storage.write_json(folder / "a.json", {"x": 3})
    assert storage.read_json(folder / "a.json") == {"x": 3}
    for _ in range(2):
        storage.remove(folder / "a.json")
    assert not storage.exists(folder / "a.json")


def test_what_another_process_writes_is_seen_at_once(folder):
    assert storage.names_in(folder) == []
    code = f"from vitx import storage as s; s.write_text(s.as_path({str(folder)!r}) / 'other', 'x')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert storage.names_in(folder) == ["other"]
    assert storage.exists(folder / "other")


def test_a_file_is_created_by_one_of_many(folder):
    # moto 5.2 (2026-11) looks for the file and then writes it: of two requests at once both may create it
    threads = 1 if str(folder).startswith("s3:") else 8
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        created = list(pool.map(lambda i: storage.create_file(folder / "one", b"%d" % i), range(8)))
    assert sum(created) == 1
    assert storage.read_bytes(folder / "one") == b"%d" % created.index(True)


def test_a_file_is_created_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert storage.create_file(tmp_path / "one", b"1") and not storage.create_file(tmp_path / "one", b"2")
    assert storage.read_bytes(tmp_path / "one") == b"1" and storage.names_in(tmp_path) == ["one"]


def test_a_block_that_raises_leaves_the_old_file(folder):
    storage.write_text(folder / "report.md", "old")
    with pytest.raises(KeyError), storage.atomic_path(folder / "report.md") as draft:
        draft.write_text("half")
        raise KeyError
    assert storage.read_text(folder / "report.md") == "old"
    assert storage.names_in(folder) == ["report.md"]


@pytest.mark.parametrize("content", [None, "no json", "[" * 100_000])
def test_json_that_cannot_be_read_is_named(folder, content):
    if content is not None:
        storage.write_text(folder / "config.json", content)
    with pytest.raises(UserError, match=r"config\.json"):
        storage.read_json(folder / "config.json")


def test_folders_are_moved_and_removed(folder):
    storage.create_folder(folder / "a" / "deep")
    for name in ("x", "deep/y", storage.COMMITTED):
        storage.write_text(folder / "a" / name, name)
    storage.move_folder(folder / "a", folder / "b")
    assert not storage.exists(folder / "a")
    assert storage.read_text(folder / "b" / "deep" / "y") == "deep/y"
    assert storage.names_in(folder / "b") == [storage.COMMITTED, "deep", "x"]
    for _ in range(2):
        storage.remove_folder(folder / "b")
    assert not storage.exists(folder / "b")


def test_a_folder_travels_to_a_bucket_and_back(bucket, tmp_path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "x").write_bytes(os.urandom(1000))
    storage.upload_folder(tmp_path / "a", as_path(bucket) / "a")
    assert storage.exists(as_path(bucket) / "a" / storage.COMMITTED)
    storage.download_folder(as_path(bucket) / "a", tmp_path / "b")
    assert (tmp_path / "b" / "deep" / "x").read_bytes() == (tmp_path / "a" / "deep" / "x").read_bytes()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["deep"]


def test_the_mark_of_completeness_travels_last(bucket, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    for name in ("x", storage.COMMITTED, "z"):
        (tmp_path / "a" / name).write_text(name)
    monkeypatch.setattr(storage, "upload_file", lambda source, destination: (_ for _ in ()).throw(KeyError(source)))
    with pytest.raises(KeyError):
        storage.upload_folder(tmp_path / "a", as_path(bucket) / "a")
    assert storage.names_in(as_path(bucket) / "a") == []
    monkeypatch.undo()
    storage.upload_folder(tmp_path / "a", as_path(bucket) / "a")
    assert storage.names_in(as_path(bucket) / "a") == sorted(["x", storage.COMMITTED, "z"])


def test_a_local_copy_follows_its_file(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("VITX_CACHE", str(tmp_path / "cache"))
    path = as_path(bucket) / "shard.array_record"
    for content in (b"one", b"two"):
        storage.write_bytes(path, content)
        copy = local_copy(path)
        assert copy.read_bytes() == content
        assert local_copy(path) == copy
    assert local_copy(copy) is copy


# nothing outside of a folder is touched, nothing half written is seen


def test_links_are_replaced_and_never_followed(tmp_path):
    victim, run = tmp_path / "thesis.txt", tmp_path / "run"
    victim.write_text("thesis")
    run.mkdir()
    for name in ("a.json", "a.tmp", "a.json.tmp", "metrics.jsonl", "metrics.tmp", ".lock", "created"):
        (run / name).symlink_to(victim)
    storage.write_json(run / "a.json", {})
    with contextlib.suppress(UserError), lock_folder(run, busy="busy"):
        pass
    with contextlib.suppress(UserError):
        RowsWriter(run / "metrics.jsonl").close()
    assert not storage.create_file(run / "created", b"x")
    assert victim.read_text() == "thesis"
    storage.remove_folder(run)
    assert victim.read_text() == "thesis"


def test_temporary_files_are_exclusive_unguessable_and_beside_their_target(tmp_path, monkeypatch):
    opened, real = [], os.open

    def spy(path, flags, *rest, **more):
        opened.append((Path(path), flags))
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", spy)
    for _ in range(20):
        storage.write_text(tmp_path / "a.txt", "x")
    monkeypatch.undo()
    drafts = {path for path, flags in opened if flags & os.O_CREAT}
    assert len(drafts) == 20
    assert all(flags & os.O_EXCL for _, flags in opened if flags & os.O_CREAT)
    assert all(path.parent == tmp_path and len(path.name) > 20 for path in drafts)
    assert os.listdir(tmp_path) == ["a.txt"]


def test_new_files_have_the_permissions_that_the_user_set(tmp_path):
    before = os.umask(0o027)
    try:
        storage.write_text(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_readers_see_whole_files_only(folder):
    path = folder / "a.json"
    storage.write_json(path, [0] * 5000)
    code = (
        "from vitx import storage as s\n"
        f"path = s.as_path({str(path)!r})\n"
        "for i in range(9): s.write_json(path, [i] * (5000 + i))"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as writer:
        while writer.poll() is None:
            assert len(set(storage.read_json(path))) == 1
    assert storage.read_json(path) == [8] * 5008


def test_what_a_killed_writer_left_is_removed_by_the_next_holder(tmp_path):
    draft = tmp_path / ".tmp-0123456789abcdef-a.json"
    for name in (draft.name, ".tmp-mine", "a.json"):
        (tmp_path / name).touch()
    with lock_folder(tmp_path, busy="busy"):
        assert not draft.exists()
        assert {".tmp-mine", "a.json"} <= set(os.listdir(tmp_path))


# errors


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_disk_that_refuses_is_a_user_error(tmp_path, number):
    with pytest.raises(UserError, match=str(tmp_path)), report_io_errors(tmp_path):
        raise OSError(number, os.strerror(number))


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(ValueError, match="x"), report_io_errors(tmp_path):
        raise ValueError("x")


@pytest.mark.parametrize("kind", ["gs", "s3"])
def test_a_bucket_that_is_not_there_is_named(kind, new_bucket):
    new_bucket(kind)
    with pytest.raises(UserError, match=f"{kind}://no-such-bucket-here"):
        storage.write_text(as_path(f"{kind}://no-such-bucket-here/run/a"), "x")


UNREACHABLE = {
    "gs": {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:9", "FSSPEC_GS_TOKEN": "anon"},
    "s3": {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"},
}


@pytest.mark.parametrize("kind", ["gs", "s3"])
def test_an_unreachable_store_is_reported_in_bounded_time(kind):
    pytest.importorskip({"gs": "gcsfs", "s3": "s3fs"}[kind])
    error, seconds = attempt(kind, UNREACHABLE[kind])
    assert f"{kind}://bucket-name" in error and "cannot be reached" in error
    assert seconds < 10  # 3 of them are PROBE_SECONDS


@pytest.mark.parametrize("kind", ["gs", "s3"])
def test_missing_credentials_name_what_to_set(kind, tmp_path, request):
    name = {"gs": "GOOGLE_APPLICATION_CREDENTIALS", "s3": "AWS_ACCESS_KEY_ID"}[kind]
    if kind == "gs":
        settings = {"STORAGE_EMULATOR_HOST": request.getfixturevalue("refusing_store"), "NO_GCE_CHECK": "true"}
    else:
        settings = {"AWS_ENDPOINT_URL": request.getfixturevalue("amazon_store"), "AWS_EC2_METADATA_DISABLED": "true"}
    error, seconds = attempt(kind, {"HOME": str(tmp_path), **settings})
    assert name in error and f"{kind}://bucket-name" in error
    assert f"{kind}://bucket-name/vitx" not in error  # the file that is asked for is not the user's
    assert seconds < 30


def attempt(kind, settings):
    """Returns the UserError of a write in a process with an environment of its own, and the seconds it took."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FSSPEC", "GOO"))}
    code = (
        "import sys, time; from vitx import storage as s\n"
        "from vitx.errors import UserError\n"
        "s.PROBE_SECONDS = 3\n"
        "begin = time.time()\n"
        f"try: s.write_text(s.as_path('{kind}://bucket-name/run/a'), 'x')\n"
        "except UserError as error: print(error)\n"
        "print(time.time() - begin)"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, env=environment | settings, capture_output=True, text=True, check=True)
    *message, seconds = done.stdout.strip().split("\n")
    assert not done.stderr
    return "\n".join(message), float(seconds)


# rows


def test_rows_are_appended_and_read(folder):
    path = folder / "metrics.jsonl"
    assert read_rows(path) == []
    writer = RowsWriter(path)
    for step in range(5):
        writer.write({"step": step})
        writer.sync()
    assert read_rows(path) == [{"step": step} for step in range(5)]
    writer.close()
    assert read_rows(path) == [{"step": step} for step in range(5)]
    assert storage.names_in(folder) == ["metrics.jsonl"]


def test_reopened_rows_lose_those_that_are_not_kept(folder):
    path = folder / "metrics.jsonl"
    writer = RowsWriter(path)
    for step in range(6):
        writer.write({"step": step})
        if step % 2:
            writer.sync()
    if writer._file is not None:
        writer._file.close()
    del writer  # as a kill would: parts are not joined
    writer = RowsWriter(path, keep=lambda row: row["step"] < 3)
    assert [row["step"] for row in writer.rows] == [0, 1, 2]
    writer.write({"step": 30})
    writer.sync()
    assert [row["step"] for row in read_rows(path)] == [0, 1, 2, 30]
    writer.close()


def test_many_parts_are_joined(bucket, monkeypatch):
    monkeypatch.setattr("vitx.rows.MAX_PARTS", 4)
    path = as_path(bucket) / "metrics.jsonl"
    writer = RowsWriter(path)
    for step in range(10):
        writer.write({"step": step})
        writer.sync()
        assert len(storage.names_in(path.with_suffix(""))) < 4
        assert len(read_rows(path)) == step + 1


def test_a_kill_between_joining_and_removing_doubles_no_row(bucket, monkeypatch):
    path = as_path(bucket) / "metrics.jsonl"
    writer = RowsWriter(path)
    for step in range(3):
        writer.write({"step": step})
        writer.sync()
    monkeypatch.setattr(storage, "remove_folder", lambda folder: None)
    writer.close()
    assert storage.names_in(path.with_suffix("")) != []
    assert [row["step"] for row in read_rows(path)] == [0, 1, 2]
    monkeypatch.undo()
    assert [row["step"] for row in RowsWriter(path).rows] == [0, 1, 2]
    assert storage.names_in(path.with_suffix("")) == []


def test_rows_reach_a_bucket_before_long_without_sync(bucket, monkeypatch):
    monkeypatch.setattr("vitx.rows.FLUSH_SECONDS", 0.2)
    path = as_path(bucket) / "metrics.jsonl"
    writer = RowsWriter(path)
    writer.write({"step": 0})
    time.sleep(0.3)
    writer.write({"step": 1})
    assert len(read_rows(path)) == 2


def test_a_cut_last_line_is_left_out_and_another_damaged_one_refused(folder):
    path = folder / "metrics.jsonl"
    storage.write_text(path, '{"step": 1}\n{"st')
    assert read_rows(path) == [{"step": 1}]
    for damaged in ('{"st\n{"step": 1}\n', '{"step": 1}\n3\n'):
        storage.write_text(path, damaged)
        with pytest.raises(UserError, match=r"metrics\.jsonl.*line \d"):
            read_rows(path)


# locks


def test_a_held_folder_is_refused_until_it_is_released(folder, monkeypatch):
    monkeypatch.setattr(locks, "LEASE_SECONDS", 1.0)
    again = lock_folder(folder, busy="in use")
    with lock_folder(folder, busy="in use"), pytest.raises(UserError, match="in use"):
        again.__enter__()
    for _ in range(2):
        with lock_folder(folder, busy="in use") as lock:
            lock.check()


HOLDER = """
import sys, time
from vitx import locks, storage
locks.LEASE_SECONDS = 1.0
with locks.lock_folder(storage.as_path(sys.argv[1]), busy="in use"):
    print("held", flush=True)
    time.sleep(60)
"""


def start_holder(folder):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_folder_of_a_killed_process_of_this_machine_is_free_at_once(folder):
    with start_holder(folder) as holder:
        holder.kill()
    began = time.monotonic()
    with lock_folder(folder, busy="in use"):
        assert time.monotonic() - began < 5


def test_a_lease_of_a_dead_process_elsewhere_expires(bucket, monkeypatch):
    monkeypatch.setattr(locks, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(locks, "_machine", lambda: "another")
    folder = as_path(bucket) / "run"
    with start_holder(folder) as holder:
        with pytest.raises(UserError, match=rf"in use.*{holder.pid}"), lock_folder(folder, busy="in use"):
            pass
        holder.kill()
    with lock_folder(folder, busy="in use") as lock:
        lock.check()


def test_an_owner_that_slept_through_its_lease_notices_that_it_lost_the_folder(bucket, monkeypatch):
    monkeypatch.setattr(locks, "LEASE_SECONDS", 1.0)
    folder = as_path(bucket) / "run"
    with start_holder(folder) as holder:
        holder.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(locks, "_machine", lambda: "another")
        with lock_folder(folder, busy="in use") as lock:
            lock.check()
            with pytest.raises(UserError, match="in use"), lock_folder(folder, busy="in use"):
                pass
        holder.kill()
    lease = locks.Lease(folder, "in use")
    storage.create_file(folder / ".lock" / "00000099.json", json.dumps({"pid": 1, "host": "x"}).encode())
    lease._thread.join(5)
    with pytest.raises(RunError, match="took it over"):
        lease.check()


def test_one_of_many_contenders_gets_a_lease(bucket, monkeypatch):
    monkeypatch.setattr(locks, "LEASE_SECONDS", 1.0)
    folder = as_path(bucket) / "run"

    def contend(_):
        try:
            return locks.Lease(folder, "in use")
        except UserError:
            return None

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        leases = [lease for lease in pool.map(contend, range(6)) if lease]
    assert len(leases) == 1
    leases[0].release()


# stores that refuse


@pytest.fixture
def refusing_store():
    """A store that answers every request with 401, as Google's does where there are no credentials."""
    body = b'{"error": {"code": 401, "message": "Anonymous caller does not have storage.objects.create access"}}'
    answer = b"HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nConnection: close\r\n"
    answer += b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    with socket.create_server(("127.0.0.1", 0)) as server, concurrent.futures.ThreadPoolExecutor(1) as pool:

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        pool.submit(serve)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
