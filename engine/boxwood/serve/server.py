"""`boxwood serve` as a process: an address to listen at, the app behind it, and its end."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import uvicorn

from boxwood.errors import InputError, StorageError
from boxwood.serve import create_app
from boxwood.serve.security import LOOPBACK

PORT = 8321
_Address = tuple[Any, ...]


def serve(
    database: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    names: Iterable[str] = (),
    read_only: bool = False,
    roots: Iterable[str | Path] = (),
    remote: bool = False,
    token: str | None = None,
    cache: str | Path | None = None,
    open_page: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Serve a database's page until Ctrl-C, which is raised as KeyboardInterrupt.

    host, port: where to listen; port 0: any that is free.
    names: further names by which the page is asked for, such as that of a proxy in front of it.
    token: None: one is made up where others than this machine can reach the page.
    say: is given the lines that tell where the page is.

    Raises StorageError where the address is taken or the database cannot be opened.
    """
    listener = _listen(host, port)
    try:
        address, port = listener.getsockname()[:2]
        local = ipaddress.ip_address(address.partition("%")[0]).is_loopback
        if token is None and not local:
            token = secrets.token_urlsafe(24)
        hosts = {*LOOPBACK, host, address, *names} if local else {*_names(host, address), *names}
        app = create_app(
            database, read_only=read_only, roots=tuple(roots), remote=remote, token=token,
            hosts=tuple(sorted(hosts)), cache=cache,
        )  # fmt: skip

        def started() -> None:
            shown = _url(host if local else _reached_by(host, address), port, token)
            say(f"{Path(database).name} is served at {shown}")
            if not local:
                say("Whoever has this address sees the pictures, and can search, save and export.")
            say("Ctrl-C ends it.")
            if open_page:
                own = _url("127.0.0.1" if _unspecified(address) else host, port, token)
                threading.Thread(target=webbrowser.open, args=[own], daemon=True).start()
            warming.start()

        warming = threading.Thread(target=app.state.library.warm, daemon=True)
        logging.basicConfig(stream=sys.stderr, format="boxwood: %(message)s")
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, log_config=None, lifespan="on",
            server_header=False, proxy_headers=False, timeout_graceful_shutdown=2, ws="none",
        )  # fmt: skip
        server = _Server(config, started)
        server.run(sockets=[listener])
        if warming.is_alive():
            warming.join(10)  # a process that ends in the midst of loading libraries may crash
        if not server.started:
            raise StorageError("the server could not start; the lines above say why")
    finally:
        listener.close()


class _Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config, then: Callable[[], None]) -> None:
        super().__init__(config)
        self._then = then

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and not self.should_exit:
            await asyncio.to_thread(self._then)


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"there is no address {host!r} on this machine: name one of its own with --host, such "
            "as 127.0.0.1, or 0.0.0.0 for all"
        ) from error
    family, _, _, _, address = found[0]
    try:
        return _bound(family, address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            other = _free_port(family, address)
            advice = f": try --port {other}" if other else ""
            raise StorageError(f"port {port} of {host} is in use{advice}") from error
        if error.errno == errno.EACCES:
            raise StorageError(
                f"port {port} may only be used by the system: try --port {PORT}"
            ) from error
        raise StorageError(
            f"cannot listen at {host}: {error.strerror}; name an address of this machine with "
            "--host"
        ) from error


def _bound(family: int, address: _Address) -> socket.socket:
    # With the protocol named, asyncio turns TCP_NODELAY on: else every answer waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # Where that lets a port be taken from somebody else, it is not set.
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(128)  # or another server could bind the port as well
        return listener
    except BaseException:
        listener.close()
        raise


def _free_port(family: int, address: _Address) -> int | None:
    """The first of the next ports that is free."""
    for port in range(int(address[1]) + 1, min(int(address[1]) + 100, 65536)):
        try:
            _bound(family, (address[0], port, *address[2:])).close()
        except OSError:
            continue
        return port
    return None


def _unspecified(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_unspecified


def _names(host: str, address: str) -> set[str]:
    """What others may call this machine by."""
    own = socket.gethostname()
    names = {host, address, own, socket.getfqdn(), own.partition(".")[0]}
    names.add(own.partition(".")[0] + ".local")  # as neighbours find it by mDNS
    return {name for name in names if name} | (set(LOOPBACK) if _unspecified(address) else set())


def _reached_by(host: str, address: str) -> str:
    return socket.gethostname() if _unspecified(address) else host


def _url(host: str, port: int, token: str | None) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"?token={token}" if token is not None else "")
