"""A proxy before an S3 endpoint that fails as networks and servers do. For tests."""

import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Fault = Callable[[str, str], str]  # (method, path) -> "", a status, "lost", "cut", "slow"


class Proxy:
    """Listens on loopback, hands on to `endpoint`. `fault` decides about each request; `seen` counts what was done."""

    def __init__(self, endpoint: str) -> None:
        self.fault: Fault = lambda _method, _path: ""
        self.seen: list[tuple[str, str, str]] = []
        self.stopping = threading.Event()
        proxy, parts = self, urlsplit(endpoint)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                what = proxy.fault(self.command, self.path)
                proxy.seen.append((self.command, self.path, what))
                if what.isdigit():
                    self.send_response(int(what))
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if what == "slow":
                    proxy.stopping.wait(0.4)
                upstream = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
                headers = {key: value for key, value in self.headers.items() if key.lower() != "expect"}
                upstream.request(self.command, self.path, body, headers)
                answer = upstream.getresponse()
                data = answer.read()
                upstream.close()
                if what == "lost":  # it was done, and nobody is told
                    self.close_connection = True
                    self.connection.close()
                    return
                self.send_response(answer.status)
                for key, value in answer.getheaders():
                    if key.lower() not in (
                        "transfer-encoding",
                        "connection",
                        "content-length",
                        "date",
                        "server",
                    ):
                        self.send_header(key, value)
                if self.command == "HEAD":
                    self.send_header("Content-Length", answer.getheader("Content-Length") or "0")
                else:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if what == "cut":
                    self.wfile.write(data[: len(data) // 2])
                    self.close_connection = True
                    self.connection.close()
                    return
                self.wfile.write(data)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _serve

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # clients that went away

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def count(self, what: str) -> int:
        return sum(each == what for _, _, each in self.seen)

    def close(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
