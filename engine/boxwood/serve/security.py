"""Who may ask, and for what: an ASGI middleware around everything that `boxwood serve` answers.

It holds other web pages off (a page that a browser shows may send requests to this machine, under
names of its own: DNS rebinding, cross-site request forgery), asks for a token where there is one,
bounds what bodies bring in, and puts headers on every answer that keep a browser from running
anything but the page's own scripts. Errors that nobody else has caught end here too, in an answer
without details.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
import re
import time
import urllib.parse
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from boxwood.serve.schemas import Limits

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""The names of this machine by which only itself is reached."""

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Of the page. What is no page may do nothing at all (`_DATA_CSP`)."""
_DATA_CSP = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"permissions-policy",
        b"camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    ),
)
_SAFE = ("GET", "HEAD", "OPTIONS")
_WRONG_TOKENS = 10  # a minute and client
_log = logging.getLogger("boxwood.serve")


class Rate:
    """At most `most` a minute for each client; the last 1,024 clients are remembered."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._clients: OrderedDict[str, deque[float]] = OrderedDict()

    def wait(self, client: str) -> float:
        """Seconds until the next one is allowed; 0: now."""
        times = self._clients.get(client)
        now = time.monotonic()
        while times and times[0] <= now - 60:
            times.popleft()
        return 0.0 if times is None or len(times) < self.most else times[0] + 60 - now

    def count(self, client: str) -> None:
        self._clients.setdefault(client, deque(maxlen=self.most)).append(time.monotonic())
        self._clients.move_to_end(client)
        while len(self._clients) > 1024:
            self._clients.popitem(last=False)


class _TooLarge(Exception):
    """A body without a length has turned out to be too long."""


class _Refused(Exception):
    def __init__(self, status: int, kind: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.headers = status, kind, message, headers


class Guard:
    """The middleware.

    hosts: the names, without a port, by which the page may be asked for; an unspecified address
        (0.0.0.0, [::]) stands for every numeric address, since those cannot be rebound.
    token: what must be shown, or None: nothing.
    """

    def __init__(
        self, app: ASGIApp, *, limits: Limits, hosts: Iterable[str] = LOOPBACK,
        token: str | None = None,
    ) -> None:  # fmt: skip
        self._app = app
        self._limits = limits
        self._hosts = frozenset(_bare(host) for host in hosts)
        self._any_address = bool(self._hosts & {"0.0.0.0", "::"})
        self._token = token
        if token is not None:
            # Named by the token: cookies of other ports of the machine come along as well.
            self._cookie = "boxwood_" + _digest("name", token)[:12]
            self._cookie_value = _digest("value", token)
        self._uploads = Rate(limits.uploads_a_minute)
        self._wrong = Rate(_WRONG_TOKENS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, send)
        try:
            location = self._check(scope)
            if location is not None:
                await answer.redirect(location, self._set_cookie(scope))
                return
            await self._app(scope, self._bounded(scope, receive, answer), answer.send)
        except _Refused as refused:
            await answer.refuse(refused)
        except _TooLarge:
            await answer.refuse(_too_large(self._most(scope)))
        except asyncio.CancelledError:
            # Only a server that ends cancels its requests, and logs those that fail by it.
            await answer.refuse(_Refused(503, "cancelled", "the server ends", connection="close"))
        except Exception:
            if answer.started:
                raise
            _log.exception("%s %s failed", scope["method"], scope["path"])
            await answer.refuse(
                _Refused(500, "internal", "something went wrong; the terminal that runs "
                         "`boxwood serve` says what")
            )  # fmt: skip
        if answer.too_large is not None and not answer.ended:
            await answer.refuse(answer.too_large)

    # -- who asks

    def _check(self, scope: Scope) -> str | None:
        """Raises _Refused; returns where to redirect to, after a token in the address."""
        headers = _Headers(scope)
        host = self._check_host(headers)
        location = None if self._token is None else self._check_token(scope, headers)
        self._check_origin(scope, headers, host)
        if location is not None:
            return location
        length = headers.one("content-length")
        if length is not None and (not length.isdecimal() or len(length) > 18):
            raise _Refused(400, "input", "the header Content-Length is not a number")
        if length is not None and int(length) > self._most(scope):
            raise _too_large(self._most(scope))
        if scope["method"] == "POST" and scope["path"] == "/api/uploads":
            client = _client(scope)
            wait = self._uploads.wait(client)
            if wait:
                raise _Refused(
                    429, "rate", f"more than {self._uploads.most} uploads a minute: wait "
                    f"{wait:.0f} s", **{"retry-after": str(int(wait) + 1)},
                )  # fmt: skip
            self._uploads.count(client)
        return None

    def _check_host(self, headers: _Headers) -> str:
        host = headers.one("host") or ""
        name = _bare(host)
        allowed = name in self._hosts
        if not allowed and self._any_address:
            try:
                ipaddress.ip_address(name)
                allowed = True
            except ValueError:
                pass
        if not allowed:
            raise _Refused(
                421, "host", "this server does not go by that name; start `boxwood serve` with "
                "--name NAME to allow another one",
            )  # fmt: skip
        return host.lower()

    def _check_token(self, scope: Scope, headers: _Headers) -> str | None:
        assert self._token is not None
        cookies = headers.all("cookie")
        for line in cookies:
            with_name = re.search(rf"(?:^|;)\s*{self._cookie}=([0-9a-f]*)", line)
            if with_name and _same(with_name[1], self._cookie_value):
                return None if not _query_token(scope) else _without_token(scope)
        bearer = headers.one("authorization") or ""
        given = bearer[7:].strip() if bearer[:7].lower() == "bearer " else None
        query = _query_token(scope)
        shown = given if given is not None else query
        if shown is not None and _same(shown, self._token):
            return None if given is not None else _without_token(scope)
        if shown is not None:
            # The right one is taken whatever came before: behind a proxy all clients have one
            # address, and tokens are too long to be guessed. The limit bounds the attempts' noise.
            client = _client(scope)
            if self._wrong.wait(client):
                raise _Refused(429, "rate", "too many wrong tokens: wait a minute",
                               **{"retry-after": "60"})  # fmt: skip
            self._wrong.count(client)
        raise _Refused(
            401, "token", "this page needs its token: open the address that `boxwood serve` has "
            "printed, or send the header 'Authorization: Bearer TOKEN'",
            **{"www-authenticate": "Bearer"},
        )  # fmt: skip

    def _set_cookie(self, scope: Scope) -> str:
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        return f"{self._cookie}={self._cookie_value}; Path=/; HttpOnly; SameSite=Strict{secure}"

    def _check_origin(self, scope: Scope, headers: _Headers, host: str) -> None:
        """Hold other web pages off. Browsers say by `Sec-Fetch-Site`, older ones by `Origin`, who
        asks; and no page can send a header of its own to another site without being allowed to."""
        site = headers.one("sec-fetch-site")
        unsafe = scope["method"] not in _SAFE
        foreign = _Refused(403, "origin", "another web page has asked for this")
        if site not in (None, "same-origin", "none") or (unsafe and site == "none"):
            # A link to the page itself may be anywhere.
            visit = headers.one("sec-fetch-mode") == "navigate"
            if unsafe or not visit or scope["path"].startswith("/api"):
                raise foreign
        origin = headers.one("origin")
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            raise foreign
        if unsafe and headers.one("x-boxwood") != "1":
            raise _Refused(403, "origin", "requests that change something need the header "
                           "'X-Boxwood: 1'")  # fmt: skip

    # -- what comes in

    def _most(self, scope: Scope) -> int:
        """Bytes that a body may have."""
        limits = self._limits
        return limits.upload_bytes if scope["path"] == "/api/uploads" else limits.body_bytes

    def _bounded(self, scope: Scope, receive: Receive, answer: _Answer) -> Receive:
        most, came = self._most(scope), 0

        async def bounded() -> Message:
            nonlocal came
            message = await receive()
            if message["type"] == "http.request":
                came += len(message.get("body", b""))
                if came > most:
                    answer.too_large = _too_large(most)  # whatever the app makes of this
                    raise _TooLarge
            return message

        return bounded


class _Answer:
    """What goes out, with the headers that each answer has."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self.started = False
        self.ended = False
        self.too_large: _Refused | None = None

    async def send(self, message: Message) -> None:
        if not self.started and self.too_large is not None:
            return  # another answer is sent in its place
        if message["type"] == "http.response.start":
            self.started = True
            message = {**message, "headers": self._headers(list(message.get("headers", ())))}
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.ended = True
        await self._send(message)

    def _headers(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        names = {name.lower() for name, _ in headers}
        api = self._scope["path"].startswith("/api")
        kept = [pair for pair in headers if pair[0].lower() not in dict(_HEADERS)]
        kept = [pair for pair in kept if pair[0].lower() not in (b"content-security-policy",
                                                                b"server")]  # fmt: skip
        kept += _HEADERS
        kept.append((b"content-security-policy", (_DATA_CSP if api else CSP).encode()))
        if b"cache-control" not in names:
            kept.append((b"cache-control", b"no-store" if api else b"no-cache"))
        return kept

    async def refuse(self, refused: _Refused) -> None:
        self.too_large = None
        if self.started:
            return
        error = {"error": {"kind": refused.kind, "message": refused.message}}
        body = json.dumps(error).encode()
        kind = b"application/json"
        if not self._scope["path"].startswith("/api"):
            body, kind = f"Boxwood: {refused.message}\n".encode(), b"text/plain; charset=utf-8"
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        headers += [(name.encode(), value.encode()) for name, value in refused.headers.items()]
        headers.append((b"cache-control", b"no-store"))
        await self._reply(refused.status, headers, body)

    async def redirect(self, location: str, cookie: str) -> None:
        headers = [(b"location", location.encode("latin-1")), (b"set-cookie", cookie.encode()),
                   (b"content-length", b"0"), (b"cache-control", b"no-store")]  # fmt: skip
        await self._reply(303, headers, b"")

    async def _reply(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        if self._scope["method"] == "HEAD":
            body = b""
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


class _Headers:
    def __init__(self, scope: Scope) -> None:
        self._all: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            self._all.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))

    def all(self, name: str) -> list[str]:
        return self._all.get(name, [])

    def one(self, name: str) -> str | None:
        """The value of a header that may be there once. Raises _Refused."""
        values = self.all(name)
        if len(values) > 1:
            raise _Refused(400, "input", f"the header {name} is there more than once")
        return values[0].strip() if values else None


def _too_large(most: int) -> _Refused:
    size = f"{most >> 20} MiB" if most >= 1 << 20 else f"{most:,} bytes"
    # The rest of the body is not read, so the connection cannot be used again.
    return _Refused(413, "too-large", f"more than {size} were sent", connection="close")


def _bare(host: str) -> str:
    """A name in the header Host or on the command line, without its port and brackets."""
    host = host.strip().lower()
    bracketed = re.fullmatch(r"\[([0-9a-f:.]+)\](?::\d+)?", host)
    if bracketed:
        return bracketed[1]
    if host.count(":") > 1:  # an IPv6 address of the command line; no browser sends it so
        return host
    return re.sub(r":\d*$", "", host).rstrip(".")


def _client(scope: Scope) -> str:
    client: Any = scope.get("client")
    return str(client[0]) if client else ""


def _same(given: str, wanted: str) -> bool:
    """Whether two secrets are equal, in a time that tells nothing."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def _digest(what: str, token: str) -> str:
    return hmac.new(token.encode(), f"boxwood {what}".encode(), hashlib.sha256).hexdigest()


def _query(scope: Scope) -> list[tuple[str, str]]:
    return urllib.parse.parse_qsl(
        scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=100
    )


def _query_token(scope: Scope) -> str | None:
    """A token in the address of the page itself; of nothing else, for addresses get about."""
    if scope["path"] != "/" or scope["method"] not in ("GET", "HEAD"):
        return None
    try:
        return next((value for name, value in _query(scope) if name == "token"), None)
    except ValueError:  # too many fields
        return None


def _without_token(scope: Scope) -> str:
    rest = urllib.parse.urlencode([pair for pair in _query(scope) if pair[0] != "token"])
    return "/" + (f"?{rest}" if rest else "")
