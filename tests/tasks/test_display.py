"""Secrets are blanked out, credentials refused, and control characters spelt out."""

import pytest

from pixelmill.configs.schema import IngestConfig
from pixelmill.tasks.display import printable, redact, refuse_credentials
from pixelmill.tasks.sources import list_images
from pixelmill.tasks.store import Store

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
SECRET_URLS = [
    f"s3://AKIAIOSFODNN7EXAMPLE:{SECRET}@bucket/photos",
    "https://user:hunter2hunter2@host/photos",
    "https://user:hunter2hunter2@host:9000/photos",
    "az://container/photos?sv=2024-01-01&sp=r&sig=hunter2hunter2%3D",
    "https://bucket.s3.amazonaws.com/a.jpg?X-Amz-Expires=60&X-Amz-Signature=hunter2hunter2",
    "https://host/a?X-Amz-Security-Token=hunter2hunter2&x=1",
    "https://host/a?AWSAccessKeyId=hunter2hunter2",
    "https://storage.googleapis.com/b/a.jpg?X-Goog-Signature=hunter2hunter2",
    "https://host/a?access_token=hunter2hunter2",
    "https://host/a?api_key=hunter2hunter2",
]
PLAIN_URLS = [
    "s3://bucket/photos/2026-01-01",
    "gs://bucket",
    "abfs://container@account.dfs.core.windows.net/photos",
    "http://host:9000/photos",
    "http://host:9000/photos@2x/",
    "memory://night?of=stars",
    "file:///photos/user:password@home?sig=1",
    "/photos/user:password@home?sig=1",
    "photos?sig=1",
]


@pytest.mark.parametrize("url", SECRET_URLS)
def test_a_url_with_a_secret_is_blanked_out_and_refused(url):
    shown = redact(f"cannot read {url!r}: denied", {})
    for secret in ("hunter2", SECRET, "wJalr", "EXAMPLEKEY"):
        assert secret not in shown
    assert "***" in shown
    assert shown.startswith("cannot read '")
    assert shown.endswith("denied")
    with pytest.raises(ValueError, match="has credentials in it") as caught:
        refuse_credentials(url)
    assert "hunter2" not in str(caught.value)
    assert "wJalr" not in str(caught.value)


@pytest.mark.parametrize("url", PLAIN_URLS)
def test_a_url_without_a_secret_stays(url):
    refuse_credentials(url)
    if not url.startswith("file:") and "?sig" not in url:
        assert redact(url, {}) == url


def test_connection_strings_and_settings_are_blanked_out():
    text = "AccountName=a;AccountKey=hunter2hunter2==;EndpointSuffix=x aws_secret_access_key: 'abc'"
    shown = redact(text, {})
    assert "hunter2" not in shown
    assert "abc" not in shown
    assert "AccountName=a" in shown


def test_secrets_of_the_environment_are_blanked_out_wherever_they_are():
    environ = {"AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": "short"}
    assert redact(f"signed with {SECRET} in short", environ) == "signed with *** in short"


def test_neither_stores_nor_sources_take_credentials():
    for url in SECRET_URLS:
        with pytest.raises(ValueError, match="environment variables"):
            list_images(url, IngestConfig())
        with pytest.raises(ValueError, match="environment variables"):
            Store(url)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb.jpg", r"a\x1b[2Jb.jpg"),
        ("a\rb\nc\td\x00\x7f\x9b", r"a\rb\nc\td\x00\x7f\x9b"),
        ("photo\u202egpj.exe", r"photo\u202egpj.exe"),
        ("\u2066x\u2069", r"\u2066x\u2069"),
        ("\udcff.jpg", r"\udcff.jpg"),
        ("a\u2028b", r"a\u2028b"),
        ("été 写真 قطة\u200f 👩‍🚀", "été 写真 قطة\u200f 👩‍🚀"),
    ],
)
def test_what_a_terminal_would_obey_is_spelt_out(text, shown):
    assert printable(text) == shown


def test_own_newlines_may_stay():
    assert printable("a\n\x1bb", keep="\n") == "a\n\\x1bb"
