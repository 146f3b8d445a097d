import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pixelmill.configs.schema import NotifyConfig
from pixelmill.tasks.notify import Notice, send_notice

NOTICE = Notice("failed", "night of photos failed", "the disk is full", {"num_failed": 3})


class Receiver:
    """A webhook in a thread of this process; `got` has (path, document) of what came."""

    def __init__(self, status: int = 200) -> None:
        self.got: list[tuple[str, dict[str, object]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append((self.path, json.loads(body)))
                self.send_response(status)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/hooks/s3cret-token"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def refuser():
    receiver = Receiver(status=500)
    yield receiver
    receiver.close()


def test_a_webhook_gets_the_notice(receiver):
    target = NotifyConfig(url_variable="HOOK")
    assert send_notice([target], NOTICE, {"HOOK": receiver.url}) == ()
    ((path, document),) = receiver.got
    assert path == "/hooks/s3cret-token"
    assert document["title"] == "night of photos failed"
    assert document["message"] == "the disk is full"
    assert document["type"] == "failure"


def test_only_those_are_told_who_asked_for_the_outcome(receiver):
    target = NotifyConfig(url_variable="HOOK", outcomes=("unhealthy",))
    assert send_notice([target], NOTICE, {"HOOK": receiver.url}) == ()
    assert receiver.got == []


def test_a_webhook_that_refuses_is_named_by_its_variable_and_its_address_is_logged_nowhere(
    refuser, caplog, capfd
):
    target = NotifyConfig(url_variable="HOOK")
    with caplog.at_level("DEBUG"):
        (failure,) = send_notice([target], NOTICE, {"HOOK": refuser.url})
    assert failure.target == "HOOK"
    assert "not accepted" in failure.reason
    out = capfd.readouterr()
    assert "s3cret-token" not in f"{failure} {caplog.text} {out.out} {out.err}"


@pytest.mark.parametrize(
    ("environ", "reason"), [({}, "not set"), ({"HOOK": "no url"}, "neither a webhook nor")]
)
def test_an_address_that_is_none_is_told(environ, reason):
    (failure,) = send_notice([NotifyConfig(url_variable="HOOK")], NOTICE, environ)
    assert reason in failure.reason


def test_a_program_gets_the_notice_as_json_without_secrets(tmp_path):
    out = tmp_path / "notice.json"
    script = "import sys; open(sys.argv[1], 'w').write(sys.stdin.read())"
    notice = Notice(
        "failed", "title", "at https://user:hunter22@host/x \x1b[2J", {"error": "a\x07"}
    )
    target = NotifyConfig(command=(sys.executable, "-c", script, str(out)))
    assert send_notice([target], notice) == ()
    document = json.loads(out.read_text())
    assert document["outcome"] == "failed"
    assert "hunter22" not in document["text"]
    assert "\x1b" not in document["text"]
    assert document["facts"] == {"error": "a\\x07"}


def test_a_program_that_fails_or_is_not_there_is_told():
    fails = NotifyConfig(command=(sys.executable, "-c", "import sys; sys.exit('no line')"))
    absent = NotifyConfig(command=("/no/such/program",))
    first, second = send_notice([fails, absent], NOTICE)
    assert first.reason == "it ended with 1: no line"
    assert "No such file" in second.reason


def test_a_target_is_a_webhook_or_a_program():
    with pytest.raises(ValueError, match="either url_variable or command"):
        NotifyConfig()
