"""Text for people: without secrets, and without characters that a terminal or browser obeys."""

import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

__all__ = ["printable", "redact", "refuse_credentials"]

_HIDDEN = "***"

# user:password@, where an AWS secret may have unquoted slashes; `container@account` is no secret
_USER_INFO = re.compile(r"(?<=://)(?:[^\s/@:]*:[^\s/@]*|[A-Z0-9]{16,}:[^\s@]*)@")
_SECRET_NAME = (
    r"(?:sig|signature|credential|token|secret|password|passwd|pwd|"
    r"accesskeyid|accessid|access_key|account_key|api_?key|key)"
)
# `?sig=`, `&X-Amz-Signature=`, `;AccountKey=` of a connection string, `secret_access_key: "..."`
_PARAMETER = re.compile(
    rf"(?i)(?P<name>(?:[?&;]|%26)[^\s=&;?#]*{_SECRET_NAME}=)(?P<value>[^\s&;#'\"<>]+)"
)
_SETTING = re.compile(
    r"(?i)(?P<name>\b(?:AccountKey|SharedAccessSignature|[a-z_]*(?:secret|account|access)_key|"
    r"[a-z_]*(?:session|bearer|sas)_token)['\"]?\s*[:=]\s*['\"]?)(?P<value>[^\s;,'\"<>]+)"
)
_SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_CLIENT_SECRET",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
)
# A shorter value may be an everyday word
_SHORTEST_SECRET = 8

# Control characters, line separators, lone surrogates, and what turns the direction of the text
# that follows (U+202E in a file name shows photo\u202Egpj.exe as photoexe.jpg). Marks that only
# hint at a direction stay: Arabic and Hebrew captions have them.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def redact(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """The text with the secrets of storage URLs and of this process' environment blanked out.

    Passwords before a host, signatures and keys in a query, keys of connection strings, and the
    values of the variables that hold storage keys.
    """
    for name in _SECRET_VARIABLES:
        value = environ.get(name, "")
        if len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, _HIDDEN)
    text = _USER_INFO.sub(f"{_HIDDEN}@", text)
    text = _PARAMETER.sub(rf"\g<name>{_HIDDEN}", text)
    return _SETTING.sub(rf"\g<name>{_HIDDEN}", text)


def printable(text: str, *, keep: str = "") -> str:
    r"""The text with control characters spelt out, as in `\x1b[2J`.

    Args:
        text: of anyone, such as a file name.
        keep: control characters that stay, such as the newlines of a message of our own.
    """
    return _OBEYED.sub(lambda found: found[0] if found[0] in keep else _spelt(found[0]), text)


def _spelt(character: str) -> str:
    return character.encode("unicode_escape").decode()


def refuse_credentials(url: str) -> None:
    """Stop at a URL with a secret in it, which would end up in records, tables and reports.

    Raises:
        ValueError: it has a password, key or signature; the message does not show it.
    """
    if "://" not in url or url.partition("://")[0].lower() == "file":
        return
    query = urlsplit(url).query
    if not _USER_INFO.search(url) and not (query and _PARAMETER.search(f"?{query}")):
        return
    raise ValueError(
        f"{printable(redact(url, {}))} has credentials in it, which would be stored with every "
        "result; give the URL without them, and the credentials by the provider's environment "
        "variables (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AZURE_STORAGE_SAS_TOKEN, "
        "GOOGLE_APPLICATION_CREDENTIALS) or by the machine's role"
    )
