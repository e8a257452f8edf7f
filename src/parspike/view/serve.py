"""The server of the page: on 127.0.0.1 only, behind a random token.

One gate stands in front of everything that Bokeh serves. A request passes where its Host is this server's own (a page
elsewhere whose name was pointed at 127.0.0.1 has another), where its Origin, if it has one, is too, and where its path
begins with the token. Everything else gets 403, before any of it is looked at.
"""

from __future__ import annotations

import hmac
import secrets
import signal
import threading
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from parspike.errors import MissingExtraError, OptionError
from parspike.snn import SNN
from parspike.view.scene import Scene, scene_of

if TYPE_CHECKING:
    from bokeh.server.server import BaseServer

__all__ = ["Served", "serve", "view"]

HOST = "127.0.0.1"


class Served:
    """A running server. url: what a browser opens. `run` serves until Ctrl-C, or until `stop` is called in another
    thread."""

    def __init__(self, server: BaseServer, loop: Any, url: str) -> None:
        self.server, self.loop, self.url = server, loop, url

    def run(self) -> None:
        """Serve until Ctrl-C (SIGINT) or SIGTERM."""
        # Tornado would print a KeyboardInterrupt that falls into one of its callbacks, and go on.
        main = threading.current_thread() is threading.main_thread()
        signals = (signal.SIGINT, signal.SIGTERM) if main else ()
        before = {number: signal.signal(number, lambda *_: self.stop()) for number in signals}
        try:
            self.loop.start()
            self.loop.run_sync(self._close)
        finally:
            self.loop.close()
            for number, handler in before.items():
                signal.signal(number, handler)

    async def _close(self) -> None:
        self.server.unlisten()
        self.server.stop()
        await self.server._http.close_all_connections()

    def stop(self) -> None:
        """End `run`, from any thread."""
        self.loop.add_callback(self.loop.stop)


def view(
    networks: SNN | Mapping[str, SNN],
    items: Any,
    *,
    model: nn.Module | None = None,
    by_T: Mapping[int, SNN] | None = None,
    names: Sequence[str] | None = None,
    classes: Mapping[int, str] | None = None,
    picture: Callable[[Tensor], Tensor] | None = None,
    most: int = 100,
    port: int = 0,
    browser: bool = True,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a page to explore networks on this machine, until Ctrl-C (docs/view.md).

    networks: one, or several by the name that is shown, beside each other. items: batches of inputs, as `measure` takes
    them; the first `most` samples can be chosen. model: the network that they come from, whose answer is shown too.
    by_T: one network converted for several T, such as {2: …, 8: …}: moving T shows the answer of each. names, classes:
    of the inputs and of the classes. picture: an input (C, H, W) as an image 0 … 1 (default: stretched to its own least
    and largest value). port: 0 takes a free one. browser: whether to open the page. ready: called with its address.

    Only this machine can reach the page, and only with the random token in its address. Raises `MissingExtraError`
    without Bokeh, `InputError` where networks or items do not fit, `OptionError` where the port is taken.
    """
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 1 << 16:
        raise OptionError(f"port must be a whole number from 0 to 65535, got {port!r}")
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise OptionError(f"most must be a whole number of at least 1, got {most!r}")
    try:
        import bokeh  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("bokeh", extra="view") from error
    served = serve(scene_of(networks, items, model, by_T, most, names, classes, picture), port)
    if ready is not None:
        ready(served.url)
    if browser:
        webbrowser.open(served.url)
    served.run()


def serve(scene: Scene, port: int = 0) -> Served:
    """A server of the page of a scene that listens, and is not yet running."""
    import asyncio

    from bokeh.application import Application
    from bokeh.application.handlers import FunctionHandler
    from bokeh.server.server import BaseServer
    from bokeh.server.tornado import BokehTornado
    from tornado.httpserver import HTTPServer
    from tornado.ioloop import IOLoop
    from tornado.netutil import bind_sockets

    from parspike.view.page import Page

    token = secrets.token_urlsafe(24)
    loop = IOLoop(asyncio_loop=asyncio.new_event_loop(), make_current=False)
    try:
        sockets = bind_sockets(port, HOST)
    except OSError as error:
        loop.close()
        raise OptionError(f"port {port} cannot be listened on ({error.strerror}): choose another, or 0") from error
    port = sockets[0].getsockname()[1]
    own = frozenset(f"{host}:{port}" for host in (HOST, "localhost"))
    pages = Application(FunctionHandler(lambda doc: Page(scene).add_to(doc)))
    application = BokehTornado(
        {"/": pages}, prefix=f"/{token}", extra_websocket_origins=sorted(own), use_index=False,
        ico_path="none", log_function=lambda handler: None,
    )  # fmt: skip

    async def listen() -> BaseServer:
        # Within the loop, which Tornado's sockets and timers take as the current one.
        http = HTTPServer(gate(application, own, token))
        server = BaseServer(loop, application, http)
        server.start()
        http.add_sockets(sockets)
        return server

    return Served(loop.run_sync(listen), loop, f"http://{HOST}:{port}/{token}/")


def allowed(host: str, origin: str | None, path: str, own: frozenset[str], token: str) -> bool:
    """Whether a request may pass. host, origin: its headers. own: the hosts that are this server's, with their port."""
    if host.lower() not in own:
        return False
    if origin is not None and origin.lower() not in {f"http://{one}" for one in own}:
        return False
    first = path.removeprefix("/").partition("/")[0]
    return path.startswith("/") and hmac.compare_digest(first.encode(), token.encode())


def gate(application: Any, own: frozenset[str], token: str) -> Any:
    """What stands in front of the application: `allowed` of every request, else 403."""
    from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, ResponseStartLine
    from tornado.routing import Router

    class Refusal(HTTPMessageDelegate):
        def __init__(self, connection: Any) -> None:
            self.connection = connection

        def finish(self) -> None:
            text = b"403: open the address that parspike view printed\n"
            headers = HTTPHeaders(
                {"Content-Length": str(len(text)), "Content-Type": "text/plain", "Connection": "close"}
            )
            self.connection.write_headers(ResponseStartLine("HTTP/1.1", 403, "Forbidden"), headers, text)
            self.connection.finish()

    class Gate(Router):
        def find_handler(self, request: Any, **options: Any) -> Any:
            hosts, origins = (request.headers.get_list(name) for name in ("Host", "Origin"))
            passes = len(hosts) == 1 and len(origins) < 2
            if passes and allowed(hosts[0], origins[0] if origins else None, request.path, own, token):
                return application.find_handler(request, **options)
            return Refusal(request.connection)

    return Gate()
