"""The page's server: only who has the address with its token gets an answer, and only reads.

Threats that it is built for: another user of the machine (the random token in the path), a web page
in the same browser (Host is checked, so that no name can be rebound to this address; nothing may
frame or load from it), and hostile files and tables (pictures are decoded and encoded anew, names
are text; no request names a path).
"""

import ipaddress
import os
import re
import secrets
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.browse.query import Filter, Index
from pixelmill.tasks.display import printable
from pixelmill.tasks.report.layers import Rows, build_layer
from pixelmill.tasks.report.palette import ClassColours, assign_colours, colour_css
from pixelmill.tasks.store import Store
from pixelmill.tasks.thumbnails import make_thumbnail

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send
    from uvicorn import Server

__all__ = ["PictureCache", "listen", "make_app", "make_server", "serve"]

_FOLDER = Path(__file__).parent
_REPORT = _FOLDER.parent / "report"
_IMAGE_ID = re.compile(r"[0-9a-f]{32}")
_THUMBNAIL_EDGE, _PICTURE_EDGE = 320, 1600
_CACHE_BYTES = 256_000_000
_MOST_ROWS = 500
_HEADERS = {
    "content-security-policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; "
    "script-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class PictureCache:
    """Encoded pictures, the least used forgotten first; threads may share it.

    Args:
        make: (source_uri, edge) -> WebP or None, and why not.
        max_bytes: of all pictures together.
    """

    def __init__(
        self, make: Callable[[str, int], tuple[bytes | None, str]], max_bytes: int = _CACHE_BYTES
    ) -> None:
        self._make, self._max_bytes = make, max_bytes
        self._kept: OrderedDict[tuple[str, int], tuple[bytes | None, str]] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()
        self._busy = threading.BoundedSemaphore(max(2, os.cpu_count() or 1))

    @property
    def num_bytes(self) -> int:
        """Of the pictures kept now."""
        return self._num_bytes

    def get(self, image_id: str, source_uri: str, edge: int) -> tuple[bytes | None, str]:
        """The picture, made if need be, or None and the reason."""
        key = (image_id, edge)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        with self._busy:
            made = self._make(source_uri, edge)
        if made[0] is None:  # it may be there again a moment later
            return made
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._num_bytes += len(made[0])
            while self._num_bytes > self._max_bytes and len(self._kept) > 1:
                _, (oldest, _) = self._kept.popitem(last=False)
                self._num_bytes -= len(oldest or b"")
        return made


def _make_picture(source_uri: str, edge: int) -> tuple[bytes | None, str]:
    data, picture = make_thumbnail(source_uri, edge, quality=82)
    return data, picture.reason


class _Guard:
    """Refuses everything but reading, by the right address, with the token."""

    def __init__(self, app: "ASGIApp", token: str, is_known_host: Callable[[str], bool]) -> None:
        self._app, self._token, self._is_known_host = app, token, is_known_host

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        from starlette.responses import PlainTextResponse

        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        given = scope["path"].split("/")[1] if scope["path"].startswith("/") else ""
        refusal: tuple[int, str] | None = None
        if not self._is_known_host(host):
            refusal = 421, "This server does not answer to that name."
        elif scope["method"] not in ("GET", "HEAD"):
            refusal = 405, "Only reading is possible."
        elif not secrets.compare_digest(given.encode(), self._token.encode()):
            refusal = 404, "Not found. The address must be the one that was printed, token and all."

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), text.encode()) for name, text in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        if refusal is None:
            await self._app(scope, receive, send_with_headers)
        else:
            response = PlainTextResponse(refusal[1], refusal[0])
            await response(scope, receive, send_with_headers)


def _known_hosts(bound: str) -> Callable[[str], bool]:
    """Which Host headers belong to a server that is bound to `bound`.

    A name may be rebound by whoever owns it, an address cannot: other than the bound name and
    localhost only addresses count, and only where the server listens to more than this machine.
    """
    is_wide = bound in ("0.0.0.0", "::")

    def is_known(host: str) -> bool:
        name = re.sub(r":\d+$", "", host).strip("[]").lower()
        if name in ("localhost", bound.lower()):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return is_wide or address.is_loopback

    return is_known


class _Looks:
    """Models and colours as of a version of the index."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._version = -1
        self._lock = threading.Lock()
        self.models: Mapping[str, ModelSpec] = {}
        self.colours: ClassColours = assign_colours(())

    def refresh(self) -> None:
        with self._lock:
            if self._version != self._index.version:
                version = self._index.version
                self.models = self._index.store.models()
                names = (name for spec in self.models.values() for name in spec.classes)
                self.colours = assign_colours(names)
                self._version = version


def make_app(
    index: Index,
    token: str,
    *,
    host: str = "127.0.0.1",
    cache: PictureCache | None = None,
) -> "ASGIApp":
    """The page and what it asks for, all under `/<token>/`.

    Args:
        index: of the store.
        token: which every address must begin with.
        host: that the server is bound to.
        cache: of pictures; None for one of a usual size.
    """
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    pictures = cache or PictureCache(_make_picture)
    looks = _Looks(index)

    def told(status: int, message: str) -> Response:
        return JSONResponse({"error": printable(message)}, status)

    def page(request: Request) -> Response:
        html = _environment().get_template("browse.html.j2").render(store=index.store.root)
        return Response(html, media_type="text/html")

    def style(request: Request) -> Response:
        parts = (_REPORT / "theme.css", _REPORT / "overlays.css", _FOLDER / "browse.css")
        css = "\n".join([*(path.read_text() for path in parts), colour_css()])
        return Response(css, media_type="text/css")

    def script(request: Request) -> Response:
        return Response((_FOLDER / "browse.js").read_text(), media_type="text/javascript")

    def facets(request: Request) -> Response:
        index.refresh()
        looks.refresh()
        found = index.facets()
        numbers = looks.colours.numbers
        found["classes"] = [(name, n, numbers.get(name, -1)) for name, n in found["classes"]]
        return JSONResponse(found)

    def version(request: Request) -> Response:
        return JSONResponse({"version": index.version, "changed": index.refresh()})

    def images(request: Request) -> Response:
        try:
            wanted, offset, limit = _read_query(request.query_params)
        except ValueError as err:
            return told(400, str(err))
        found = index.page(wanted, offset, limit)
        kept = ("image_id", "path", "collection", "reason", "score", "boxes")
        rows = [{name: row[name] for name in kept} for row in found.rows]
        return JSONResponse({"total": found.total, "version": index.version, "rows": rows})

    def image(request: Request) -> Response:
        image_id = request.path_params["image_id"]
        rows = index.rows(image_id) if _IMAGE_ID.fullmatch(image_id) else None
        if not rows or not (rows["images"] or rows["failures"]):
            return told(404, "no such image")
        looks.refresh()
        return JSONResponse(_describe(index.store, image_id, rows, looks.models, looks.colours))

    def picture(request: Request) -> Response:
        image_id = request.path_params["image_id"]
        uri = index.source_uri(image_id) if _IMAGE_ID.fullmatch(image_id) else None
        if uri is None:
            return told(404, "no such image")
        edge = _THUMBNAIL_EDGE if request.path_params["what"] == "thumbnail" else _PICTURE_EDGE
        data, reason = pictures.get(image_id, uri, edge)
        if data is None:
            return told(410, reason)
        # the name is the content's digest: it never shows anything else
        age = {"cache-control": "private, max-age=86400, immutable"}
        return Response(data, media_type="image/webp", headers=age)

    root = f"/{token}"
    routes = [
        Route(f"{root}/", page),
        Route(f"{root}/browse.css", style),
        Route(f"{root}/browse.js", script),
        Route(f"{root}/api/facets", facets),
        Route(f"{root}/api/version", version),
        Route(f"{root}/api/images", images),
        Route(f"{root}/api/image/{{image_id}}", image),
        Route(f"{root}/{{what:str}}/{{image_id}}", picture),
    ]
    return _Guard(Starlette(routes=routes), token, _known_hosts(host))


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
    )


def _read_query(given: Mapping[str, str]) -> tuple[Filter, int, int]:
    """Filter, offset and limit of a request.

    Raises:
        ValueError: one of them makes no sense.
    """
    texts = ("collection", "model", "class_name", "text", "state", "order")
    chosen: dict[str, Any] = {name: given[name] for name in texts if given.get(name)}
    for name, kind in (("low", float), ("high", float), ("min_boxes", int)):
        if given.get(name):
            chosen[name] = kind(given[name])
    offset, limit = int(given.get("offset", "0")), int(given.get("limit", "60"))
    if not (0 <= offset < 2**53 and 1 <= limit <= _MOST_ROWS):
        raise ValueError(f"offset must not be negative and limit in [1, {_MOST_ROWS}]")
    return Filter(**chosen), offset, limit


def _describe(
    store: Store,
    image_id: str,
    rows: Mapping[str, list[dict[str, Any]]],
    models: Mapping[str, ModelSpec],
    colours: ClassColours,
) -> dict[str, Any]:
    """One image with what each model says of it."""
    first = (rows["images"] or rows["failures"])[0]
    found = []
    for number, row in enumerate(sorted(rows["images"], key=lambda row: str(row["model"]))):
        spec = models.get(row["model"])
        if spec is None:
            continue

        def of_model(name: str, key: str = row["model"]) -> dict[str, list[dict[str, Any]]]:
            mine = [each for each in rows[name] if each["model"] == key]
            return {image_id: sorted(mine, key=lambda each: int(each["rank"]))}

        chosen = Rows(
            images={image_id: [row]},
            detections=of_model("detections"),
            captions=of_model("captions"),
            labels=of_model("labels"),
        )
        layer = build_layer(store, image_id, spec, number, chosen, colours)
        if layer is not None:
            told = {"key": spec.key, "name": spec.name, "task": spec.task, "status": row["status"]}
            found.append(told | {"layer": asdict(layer)})
    return {
        "image_id": image_id,
        "path": printable(first["path"]),
        "collection": first["collection"],
        "width": first.get("width") or 0,
        "height": first.get("height") or 0,
        "models": found,
        "failures": [
            {
                "stage": each["stage"],
                "reason": each["reason"],
                "message": printable(each["message"]),
                "model": each["model_key"],
            }
            for each in rows["failures"]
        ],
    }


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections; port 0: any that is free.

    Raises:
        OSError: the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def make_server(app: "ASGIApp") -> "Server":
    """A server of the app, to be run on a socket of `listen`."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    return uvicorn.Server(config)


def serve(
    store: Store, *, host: str = "127.0.0.1", port: int = 0, tell: Callable[[str], None] = print
) -> None:
    """Serve a store's page until the process is told to stop (Ctrl-C, SIGTERM).

    Args:
        store: may be written to meanwhile.
        host: to bind to; anything but a loopback address lets others in who know the token.
        port: 0: any that is free.
        tell: gets the page's address.

    Raises:
        ImportError: DuckDB is not installed.
        OSError: the port is taken.
    """
    index = Index(store)
    token = secrets.token_urlsafe(24)
    with listen(host, port) as bound:
        number = bound.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        tell(f"http://{shown}:{number}/{token}/")
        try:
            make_server(make_app(index, token, host=host)).run(sockets=[bound])
        finally:
            index.close()
