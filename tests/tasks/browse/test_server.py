import http.client
import io
import json
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from PIL import Image

pytest.importorskip("duckdb")

from pixelmill.tasks.browse import Filter, Index, make_app
from pixelmill.tasks.browse.server import PictureCache, _known_hosts, listen, make_server

TOKEN = "s3cr3t-token"


@pytest.fixture(scope="module")
def server(store):
    """(port, index) of a page that is served by a thread."""
    index = Index(store)
    with listen("127.0.0.1", 0) as bound:
        server = make_server(make_app(index, TOKEN))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield bound.getsockname()[1], index
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()
    index.close()


@pytest.fixture
def get(server):
    def ask(path, *, method="GET", host="127.0.0.1", token=TOKEN):
        connection = http.client.HTTPConnection("127.0.0.1", server[0], timeout=30)
        connection.putrequest(method, f"/{token}/{path}", skip_host=True)
        if host is not None:
            connection.putheader("Host", host)
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), body

    return ask


def answer(got):
    status, _, body = got
    assert status == 200, body
    return json.loads(body)


def test_page_allows_nothing_but_itself(get):
    status, headers, body = get("")
    assert status == 200
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert not re.search(rb"https?://|<script>|<style>| style=| on[a-z]+=", body)
    for name, kind in (("browse.css", "text/css"), ("browse.js", "text/javascript")):
        status, headers, body = get(name)
        assert (status, headers["content-type"].split(";")[0]) == (200, kind)
        assert b"innerHTML" not in body


@pytest.mark.parametrize("path", ["", "api/facets", "api/images", "thumbnail/" + "0" * 32])
def test_without_the_token_there_is_nothing(get, path):
    for token in ("", "x", TOKEN[:-1], TOKEN + "x", "..", "%2e%2e"):
        assert get(path, token=token)[0] == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "192.168.0.7", "", None]
)
def test_other_names_are_refused(get, host):
    assert get("", host=host)[0] in (400, 421)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_only_reading_is_possible(get, method):
    assert get("api/facets", method=method)[0] == 405


@pytest.mark.parametrize(
    ("bound", "host", "known"),
    [
        ("127.0.0.1", "localhost:80", True),
        ("127.0.0.1", "[::1]:80", True),
        ("127.0.0.1", "10.0.0.1", False),
        ("0.0.0.0", "10.0.0.1:8000", True),
        ("0.0.0.0", "evil.example", False),
        ("box.lan", "BOX.lan:80", True),
    ],
)
def test_addresses_cannot_be_rebound_but_names_can(bound, host, known):
    assert _known_hosts(bound)(host) is known


@pytest.mark.parametrize(
    "name", ["..%2f..%2fetc%2fpasswd", "../../etc/passwd", "0" * 32, "x", "0" * 31 + "G", "%00"]
)
@pytest.mark.parametrize("what", ["thumbnail", "picture", "api/image"])
def test_no_request_names_a_file(get, what, name):
    assert get(f"{what}/{name}")[0] == 404


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=9999", "offset=-1", "low=x", "state=x", "order=path;drop", "low=2"]
)
def test_wrong_questions_are_told(get, query):
    status, _, body = get(f"api/images?{query}")
    assert status == 400
    assert json.loads(body)["error"]


def test_images_and_what_models_say_of_them(get, paths, specs, kit):
    found = answer(get("api/images?class_name=car&low=0.5&order=path&limit=3"))
    assert found["total"] == len(paths) - 1
    assert [row["path"] for row in found["rows"]] == sorted(paths)[:3]
    assert "source_uri" not in found["rows"][0]
    image = answer(get(f"api/image/{found['rows'][0]['image_id']}"))
    layers = {model["key"]: model["layer"] for model in image["models"]}
    assert layers.keys() == {spec.key for spec in specs}
    assert len(layers[specs[0].key]["boxes"]) == 3
    assert layers[specs[0].key]["boxes"][-1]["outline"].startswith("M")
    assert layers[specs[1].key]["regions_uri"].startswith("data:image/png")
    assert layers[specs[2].key]["captions"] == [f"a quay {kit.EVIL}"]
    assert layers[specs[3].key]["labels"][0]["class_name"] == "day"


def test_pictures_are_encoded_anew(get):
    image_id = answer(get("api/images"))["rows"][0]["image_id"]
    for what in ("thumbnail", "picture"):
        status, headers, body = get(f"{what}/{image_id}")
        assert (status, headers["content-type"]) == (200, "image/webp")
        assert Image.open(io.BytesIO(body)).size == (64, 48)


def test_facets_count_models_collections_and_classes(get, kit, paths):
    found = answer(get("api/facets"))
    assert found["collections"] == [[kit.COLLECTION, len(paths)]]
    assert len(found["models"]) == 4
    assert ["car", len(paths) - 1, 0] in found["classes"]
    assert answer(get("api/version")) == {"version": 1, "changed": False}


def test_cache_keeps_to_its_size_and_forgets_failures():
    made = []

    def make(uri, edge):
        made.append(uri)
        return (None, "gone") if uri == "bad" else (b"x" * 400, "")

    cache = PictureCache(make, 1000)
    for uri in ("a", "b", "a", "c", "b", "bad", "bad"):
        cache.get(uri, uri, 100)
    assert cache.num_bytes <= 1000
    assert made == ["a", "b", "c", "b", "bad", "bad"]


def test_many_readers_at_once_get_whole_answers(server, get, paths):
    _, index = server
    totals = []

    def read(number):
        for turn in range(6):
            wanted = Filter(text=f"pier/{(number + turn) % 7}")
            totals.append(index.page(wanted, 0, 9).total)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert totals == [1] * 48


@pytest.mark.slow
def test_ends_in_order_when_told_to(store):
    command = [sys.executable, "-P", "-m", "pixelmill.flows.cli", "browse", store.root]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        address = process.stdout.readline().decode()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{32}/\n", address)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=30)
    assert process.returncode == 0
    assert complaints == b""
