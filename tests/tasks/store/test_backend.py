import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError

from pixelmill.tasks.store import Store, publish
from pixelmill.tasks.store.backend import (
    Entry,
    LocalBackend,
    ObjectBackend,
    open_backend,
    probe_create_if_absent,
)
from pixelmill.tasks.transient import RefusedError


@pytest.fixture(params=["local", "memory", "s3"])
def backend(request, tmp_path):
    if request.param == "s3":
        return open_backend(request.getfixturevalue("s3_root"))
    return open_backend({"local": tmp_path, "memory": f"memory://{tmp_path}"}[request.param])


def test_create_keeps_the_first_content(backend):
    assert backend.create("a/b=c/x.json", b"first")
    assert not backend.create("a/b=c/x.json", b"second")
    assert backend.get("a/b=c/x.json") == b"first"


def test_create_of_the_same_content_is_ours(backend):
    assert backend.create("x", b"mine")
    assert backend.create("x", b"mine")


def test_what_is_deleted_between_a_refused_create_and_its_look_is_created(backend, monkeypatch):
    backend.create("claim", b"theirs")
    real = type(backend).get

    def get(self, key):
        if key == "claim" and self.exists(key) and real(self, key) == b"theirs":
            self.delete([key])
        return real(self, key)

    monkeypatch.setattr(type(backend), "get", get)
    assert backend.create("claim", b"ours")
    assert real(backend, "claim") == b"ours"


def test_of_many_creates_at_once_one_wins(backend):
    with ThreadPoolExecutor(8) as pool:
        for round_number in range(5):
            key = f"race/{round_number}"
            won = list(pool.map(lambda i, key=key: backend.create(key, b"%d" % i), range(8)))
            assert won.count(True) == 1
            assert backend.get(key) == b"%d" % won.index(True)


def test_put_replaces(backend):
    backend.put("t/x", b"old")
    backend.put("t/x", b"newer")
    assert backend.get("t/x") == b"newer"
    assert list(backend.list("t")) == [Entry("t/x", 5)]


def test_many_new_objects_are_put_at_once(backend):
    objects = {f"a/{index}/{index % 3}/x": bytes([index]) for index in range(20)} | {"y": b""}
    backend.put_new(objects)
    assert {key: backend.get(key) for key in objects} == objects
    backend.put_new({})


def test_new_files_and_every_folder_that_got_an_entry_are_synced_once(tmp_path, monkeypatch):
    synced, real = [], os.fsync

    def fsync(descriptor):
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    (tmp_path / "a").mkdir()
    LocalBackend(str(tmp_path)).put_new({"a/b/c/x": b"1", "a/b/d/y": b"2", "a/b/d/z": b"3"})
    names = ["a", "a/b", "a/b/c", "a/b/c/x", "a/b/d", "a/b/d/y", "a/b/d/z"]
    assert sorted(synced) == [str(tmp_path / name) for name in names]


def test_list_is_sorted_recursive_and_bound_to_the_folder(backend):
    for key in ("t/b/2", "t/a", "t/b/1", "tt/c"):
        backend.put(key, b"")
    assert [entry.key for entry in backend.list("t")] == ["t/a", "t/b/1", "t/b/2"]
    assert list(backend.list("absent")) == []


def test_missing_objects_are_said_to_be_missing(backend):
    assert not backend.exists("absent")
    with pytest.raises(FileNotFoundError):
        backend.get("absent")
    with pytest.raises(FileNotFoundError):
        backend.open("absent")


def test_order_of_a_listing_is_that_of_the_whole_keys(backend):
    keys = ["a!x", "a/b-", "a/b.c", "a/b/c", "a/b0", "a0", "é/x", "\U0001f680"]
    for key in reversed(keys):
        backend.put(key, b"")
    assert [entry.key for entry in backend.list("")] == sorted(keys)
    assert [entry.key for entry in backend.list("a/")] == ["a/b-", "a/b.c", "a/b/c", "a/b0"]


def test_delete_ignores_what_is_gone(backend):
    for key in ("t/x", "t/z"):
        backend.put(key, b"1")
    backend.delete(["t/absent", "t/x", "t/y", "t/z"])
    backend.delete([])
    assert list(backend.list("t")) == []


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "a\0b", ".."])
def test_keys_do_not_lead_out_of_a_folder(tmp_path, key):
    """They are read from receipts and tables, which another may have written."""
    backend = LocalBackend(str(tmp_path / "store"))
    (tmp_path / "x").write_bytes(b"secret")
    for use in (
        backend.get,
        backend.exists,
        backend.open,
        backend.zarr_store,
        lambda key: list(backend.list(key)),
        lambda key: backend.put(key, b""),
        lambda key: backend.create(key, b""),
        lambda key: backend.delete([key]),
    ):
        with pytest.raises(ValueError, match="leads out of the store"):
            use(key)
    assert (tmp_path / "x").read_bytes() == b"secret"


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    backend = LocalBackend(str(tmp_path))
    backend.put("a/x", b"")

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        list(backend.list("a"))


def test_open_reads_any_range(backend):
    backend.put("x", bytes(range(100)))
    with backend.open("x") as file:
        assert file.seek(-3, os.SEEK_END) == 97
        assert file.read() == bytes([97, 98, 99])
        file.seek(10)
        assert file.read(2) == bytes([10, 11])
        assert file.read(0) == b""


def test_a_pickled_backend_is_the_same_place(backend):
    backend.put("x", b"1")
    again = pickle.loads(pickle.dumps(backend))
    assert again == backend
    assert again.get("x") == b"1"


def test_the_probe_accepts_and_leaves_nothing(backend):
    probe_create_if_absent(backend)
    assert list(backend.list("_commit")) == []


def test_deleted_folders_go_but_the_root_stays(tmp_path):
    backend = LocalBackend(str(tmp_path))
    backend.put("a/b/x", b"1")
    backend.put("a/y", b"1")
    backend.delete(["a/b/x"])
    assert not (tmp_path / "a/b").exists()
    backend.delete(["a/y"])
    assert tmp_path.exists()


def test_local_writes_leave_no_temporary_files(tmp_path):
    backend = LocalBackend(str(tmp_path))
    backend.create("x", b"1")
    backend.create("x", b"2")
    backend.put("x", b"3")
    assert [entry.key for entry in backend.list("")] == ["x"]


def test_a_file_system_without_links_is_refused(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(RuntimeError, match="hard links"):
        probe_create_if_absent(LocalBackend(str(tmp_path)))


def test_a_store_that_ignores_the_condition_is_refused(monkeypatch):
    real = obstore.put
    monkeypatch.setattr(obstore, "put", lambda store, key, data, **_: real(store, key, data))
    with pytest.raises(RuntimeError, match="If-None-Match"):
        probe_create_if_absent(open_backend("memory://careless"))


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RuntimeError, match="cannot"):
        probe_create_if_absent(LocalBackend(str(tmp_path / "file")))


def test_a_store_that_has_gone_away_is_not_made_anew(tmp_path):
    store = Store(tmp_path / "store", create=True)
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    for use in (store.require, lambda: store.backend.put("x", b""), lambda: publish(store)):
        with pytest.raises(RefusedError, match="has gone away: bring it back"):
            use()
    assert not (tmp_path / "store").exists()
    Store(tmp_path / "store", create=True)  # another one in its place
    with pytest.raises(RefusedError, match="has gone away"):
        publish(store)


def test_a_conflict_is_tried_again(monkeypatch):
    """S3 answers 409 while another conditional write is under way; obstore says 'exists'."""
    backend, calls, real = open_backend("memory://conflict"), [], obstore.put

    def put(store, key, data, **options):
        calls.append(key)
        if len(calls) < 3:
            raise AlreadyExistsError("409 ConditionalRequestConflict")
        return real(store, key, data, **options)

    monkeypatch.setattr(obstore, "put", put)
    assert backend.create("x", b"1")
    assert len(calls) == 3


def test_endless_conflicts_are_an_error(monkeypatch):
    def put(*_, **__):
        raise AlreadyExistsError("409 ConditionalRequestConflict")

    monkeypatch.setattr(obstore, "put", put)
    with pytest.raises(RuntimeError, match="conflicting"):
        open_backend("memory://endless").create("x", b"1")


def test_a_lost_answer_to_our_own_create_counts_as_ours(monkeypatch):
    """The client sends again what had arrived, and is told that it exists."""
    real = obstore.put

    def put(store, key, data, **options):
        real(store, key, data, **options)
        raise AlreadyExistsError("412")

    monkeypatch.setattr(obstore, "put", put)
    assert open_backend("memory://lost").create("x", b"mine")


def test_unknown_schemes_are_refused():
    with pytest.raises(ValueError, match="s3://"):
        open_backend("ftp://host/folder")


def test_roots_are_absolute_and_without_a_trailing_slash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_backend("out") == LocalBackend(str(tmp_path / "out"))
    assert open_backend(f"file://{tmp_path}/out") == LocalBackend(str(tmp_path / "out"))
    assert open_backend("s3://bucket/out/") == ObjectBackend("s3://bucket/out")


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_is_refused_instead_of_hanging():
    backend = open_backend("memory://forked")
    backend.put("x", b"1")
    child = os.fork()
    if child == 0:
        try:
            backend.get("x")
        except RuntimeError as err:
            os._exit(0 if "spawn" in str(err) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
