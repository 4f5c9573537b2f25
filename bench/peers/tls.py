"""What the interpreter's TLS gives on loopback: `RawTcp` with `ssl` around both sockets.

`python -m bench.peers.tls BUFFER TOTAL CERT KEY` is the receiving half.
"""

import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path


class RawTls:
    """Another process that receives over TLS 1.3 and throws away; `run` sends to it."""

    def __init__(self, buffer_size: int, total: int, cert: Path, key: Path, ca: Path) -> None:
        self.buffer_size, self.total = buffer_size, total
        self.context = ssl.create_default_context(cafile=ca)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        words = ["-m", "bench.peers.tls", str(buffer_size), str(total), str(cert), str(key)]
        self.process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def run(self) -> float:
        """Bytes per second from the first byte sent to the receiver's answer after the last."""
        block = memoryview(bytes(self.buffer_size))
        with socket.create_connection(("127.0.0.1", self.port)) as plain:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
                begun = time.perf_counter()
                left = self.total
                while left > 0:
                    length = min(left, self.buffer_size)
                    connection.sendall(block[:length])
                    left -= length
                connection.recv(1)
                return self.total / (time.perf_counter() - begun)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def main() -> None:
    """Prints its port, then takes connections for ever; answers one byte when all has come."""
    buffer_size, total = int(sys.argv[1]), int(sys.argv[2])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(sys.argv[3], sys.argv[4])
    buffer = memoryview(bytearray(buffer_size))
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            plain, _ = server.accept()
            with context.wrap_socket(plain, server_side=True) as connection:
                left = total
                while left > 0 and (got := connection.recv_into(buffer[: min(left, buffer_size)])):
                    left -= got
                if left == 0:
                    connection.sendall(b"k")


if __name__ == "__main__":
    main()
