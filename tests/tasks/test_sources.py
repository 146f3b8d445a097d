"""Listing and reading: what is found, in which order, and what is said of the rest."""

import os
import time
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelmill.configs.schema import IngestConfig
from pixelmill.tasks.sources import (
    IMAGES_SCHEMA,
    PROBLEMS_SCHEMA,
    collection_name,
    list_images,
    read_bytes,
    read_head,
)

ANY = IngestConfig()


def write(root: Path, *paths: str) -> None:
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(path.encode())


def paths(source: object, config: IngestConfig = ANY) -> list[str]:
    return list_images(str(source), config).images["path"].to_pylist()


def problems(source: object) -> dict[str, str]:
    table = list_images(str(source), ANY).problems
    return dict(zip(table["path"].to_pylist(), table["reason"].to_pylist(), strict=True))


def test_rows_say_where_how_large_and_when(tmp_path):
    write(tmp_path, "b/one.jpg", "two.PNG")
    listing = list_images(str(tmp_path), ANY)
    assert listing.images.schema == IMAGES_SCHEMA
    assert listing.problems.schema == PROBLEMS_SCHEMA
    assert listing.problems.num_rows == 0
    status = (tmp_path / "b/one.jpg").stat()
    assert listing.images.to_pylist()[0] == {
        "path": "b/one.jpg",
        "source_uri": f"{tmp_path}/b/one.jpg",
        "size_bytes": status.st_size,
        "modified": str(status.st_mtime_ns),
    }


def test_order_is_that_of_the_paths_whatever_the_disk_says(tmp_path, monkeypatch):
    names = [f"{folder}/{i}.jpg" for folder in ("z", "a", "a/b", "a.b", "É") for i in range(10)]
    write(tmp_path, *names)
    expected = sorted(names, key=lambda name: name.encode())
    assert paths(tmp_path) == expected
    scandir = os.scandir

    class Reversed:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self.entries = list(entries)[::-1]

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert paths(tmp_path) == expected


def test_only_image_suffixes_in_any_case_and_nothing_hidden(tmp_path):
    write(tmp_path, "a.jpg", "b.JPEG", "c.txt", ".d.jpg", ".git/e.jpg", "jpg", "f.jpg.part")
    assert paths(tmp_path) == ["a.jpg", "b.JPEG"]
    assert paths(tmp_path, IngestConfig(suffixes=(".txt",))) == ["c.txt"]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*.png", ["a/b/y.png", "a/x.png", "w.png"]),
        ("/*.png", ["w.png"]),
        ("a/*.png", ["a/x.png"]),
        ("a/**", ["a/b/y.png", "a/x.png"]),
        ("**/b/*", ["a/b/y.png"]),
        ("**/a/x.png", ["a/x.png"]),
        ("?.png", ["a/b/y.png", "a/x.png", "w.png"]),
        ("[xy].png", ["a/b/y.png", "a/x.png"]),
        ("[!xy].png", ["w.png"]),
        ("[w-x].png", ["a/x.png", "w.png"]),
        ("a/*", ["a/x.png"]),
        ("A/*", []),
        ("x.pn", []),
    ],
)
def test_globs(tmp_path, glob, expected):
    everything = ["a/b/y.png", "a/x.png", "w.png"]
    write(tmp_path, *everything)
    assert paths(tmp_path, IngestConfig(include=(glob,))) == expected
    rest = [path for path in everything if path not in expected]
    assert paths(tmp_path, IngestConfig(exclude=(glob,))) == rest


@given(st.text(alphabet="ab/*?[]!-.(+\\", max_size=12))
def test_any_glob_compiles(glob):
    fsspec.filesystem("memory").pipe("/globs/a.jpg", b"")
    list_images("memory://globs", IngestConfig(include=(glob,)))


def test_link_loops_end_and_real_folders_keep_their_paths(tmp_path):
    write(tmp_path, "z/one.jpg")
    (tmp_path / "a").symlink_to(tmp_path / "z")
    (tmp_path / "z/up").symlink_to(tmp_path)
    (tmp_path / "z/self").symlink_to("self")
    assert paths(tmp_path) == ["z/one.jpg"]
    assert problems(tmp_path) == {"z/self": "unreadable_file"}


def test_a_folder_that_only_links_lead_to_is_listed_once_under_the_first(tmp_path):
    write(tmp_path, "elsewhere/one.jpg", "root/two.jpg")
    for name in ("m", "b", "z"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "elsewhere")
    assert paths(tmp_path / "root") == ["b/one.jpg", "two.jpg"]


def test_a_link_to_a_file_is_a_file(tmp_path):
    write(tmp_path, "one.jpg")
    (tmp_path / "two.jpg").symlink_to("one.jpg")
    assert paths(tmp_path) == ["one.jpg", "two.jpg"]


def test_what_cannot_be_listed_is_reported(tmp_path):
    write(tmp_path, "good.jpg", "locked/one.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "gone").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe")
    Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.jpg")).touch()
    assert paths(tmp_path) == ["good.jpg", "locked/one.jpg"]
    assert problems(tmp_path) == {
        "caf\\xe9.jpg": "unreadable_name",
        "gone": "broken_link",
        "gone.jpg": "broken_link",
        "pipe.jpg": "not_a_file",
    }


def test_an_unreadable_folder_is_reported_and_the_rest_is_listed(tmp_path, monkeypatch):
    write(tmp_path, "good.jpg", "locked/one.jpg")
    scandir = os.scandir  # root reads everything, so permissions would prove nothing

    def refuse(path: str) -> object:
        if path.endswith("locked/"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert paths(tmp_path) == ["good.jpg"]
    assert problems(tmp_path) == {"locked": "unreadable_folder"}


def test_an_empty_folder_is_no_error_but_a_missing_one_is(tmp_path):
    assert paths(tmp_path) == []
    with pytest.raises(FileNotFoundError, match="name one that exists"):
        paths(tmp_path / "missing")
    write(tmp_path, "one.jpg")
    with pytest.raises(NotADirectoryError, match="expected a folder"):
        paths(tmp_path / "one.jpg")


def test_relative_and_file_urls_are_the_same_folder(tmp_path, monkeypatch):
    write(tmp_path, "with space/one.jpg")
    monkeypatch.chdir(tmp_path)
    expected = list_images(str(tmp_path / "with space"), ANY)
    assert list_images("with space", ANY) == expected
    assert list_images(f"file://{tmp_path}/with%20space", ANY) == expected


def test_local_files_are_read(tmp_path):
    write(tmp_path, "one.jpg")
    uri = list_images(str(tmp_path), ANY).images["source_uri"][0].as_py()
    assert read_bytes(uri) == b"one.jpg"
    assert read_head(uri, 3) == b"one"
    assert read_head(uri, 100) == b"one.jpg"
    with pytest.raises(FileNotFoundError):
        read_bytes(str(tmp_path / "gone"))


def test_a_folder_of_any_fsspec_url_is_listed_and_read():
    memory = fsspec.filesystem("memory")
    for path in ("x/1.jpg", "2.png", ".hidden/3.jpg", "4.txt"):
        memory.pipe(f"/bucket/{path}", path.encode())
    listing = list_images("memory://bucket", ANY).images
    assert listing["path"].to_pylist() == ["2.png", "x/1.jpg"]
    assert listing["size_bytes"].to_pylist() == [5, 7]
    assert all(listing["modified"].to_pylist())
    assert [read_bytes(uri) for uri in listing["source_uri"].to_pylist()] == [b"2.png", b"x/1.jpg"]
    assert read_head(listing["source_uri"][0].as_py(), 2) == b"2."
    with pytest.raises(FileNotFoundError, match="nothing at"):
        list_images("memory://nothing-here", ANY)


@pytest.fixture
def bucket(monkeypatch):
    """A bucket of an S3 stand-in in this process, reached as a user's would be."""
    boto3 = pytest.importorskip("boto3")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="photos")
    yield client
    client.close()
    server.stop()


def test_s3_is_listed_with_etags_and_read_in_parts(bucket):
    names = ["a/1.jpg", "a/b/2.jpg", "a/with space+%41é.jpg", "a/.x/3.jpg", "a/n.txt", "ab/4.jpg"]
    for name in names:
        bucket.put_object(Bucket="photos", Key=name, Body=name.encode())
    listing = list_images("s3://photos/a/", ANY).images
    assert listing["path"].to_pylist() == ["1.jpg", "b/2.jpg", "with space+%41é.jpg"]
    assert [read_bytes(uri) for uri in listing["source_uri"].to_pylist()] == [
        name.encode() for name in names[:3]
    ]
    assert read_head("s3://photos/a/b/2.jpg", 3) == b"a/b"
    before = listing["modified"][0].as_py()
    bucket.put_object(Bucket="photos", Key="a/1.jpg", Body=b"A/1.jpg")
    assert list_images("s3://photos/a", ANY).images["modified"][0].as_py() != before
    for missing in ("s3://photos/nothing", "s3://no-such-bucket/x"):
        with pytest.raises(FileNotFoundError, match="check the bucket"):
            list_images(missing, ANY)
    with pytest.raises(FileNotFoundError):
        read_bytes("s3://photos/gone.jpg")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/data/My Photos (2024)/", "My-Photos-2024"),
        ("/data/photos/../scans", "scans"),
        ("s3://bucket", "bucket"),
        ("s3://bucket/2024/night/", "night"),
        ("file:///data/été", "ete"),
        ("/data/写真", "images-9c3250"),
        ("/data/.hidden", "hidden"),
    ],
)
def test_collection_names_are_slugs(source, name):
    assert collection_name(source) == name


def test_the_collection_of_the_working_directory_is_its_name(tmp_path, monkeypatch):
    (tmp_path / "night").mkdir()
    monkeypatch.chdir(tmp_path / "night")
    assert collection_name(".") == "night"


def test_files_that_were_changed_just_now_wait_and_those_of_a_wrong_clock_do_not(tmp_path):
    now = time.time()
    for name, age_s in (("old", 100), ("new", 1), ("future", -1e6)):
        (tmp_path / f"{name}.jpg").write_bytes(b"x")
        os.utime(tmp_path / f"{name}.jpg", (now - age_s, now - age_s))
    found = list_images(str(tmp_path), IngestConfig(settle_s=30)).images
    assert found["path"].to_pylist() == ["future.jpg", "old.jpg"]
