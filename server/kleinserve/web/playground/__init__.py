"""The playground: one page from package data, which speaks gRPC-Web by the module of clients/browser/."""

from collections.abc import Awaitable, Callable
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

_TYPES = {
    "index.html": "text/html",
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
    **dict.fromkeys(("app.js", "errors.js", "image.js", "klein.js", "snippets.js"), "text/javascript"),
}
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-cache",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def routes() -> list[BaseRoute]:
    """`/` and the page's own files, read once."""
    folder = resources.files(__name__)
    made = {name: _fixed((folder / name).read_bytes(), kind) for name, kind in _TYPES.items()}
    return [Route("/", made.pop("index.html")), *(Route(f"/{name}", page) for name, page in made.items())]


def _fixed(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def page(_: Request) -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return page
