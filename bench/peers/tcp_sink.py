"""`python -m bench.peers.tcp_sink BUFFER TOTAL`: the receiving half of `RawTcp`.

Prints its port, then takes connections for ever: receives TOTAL bytes into one buffer, throws them
away, answers one byte. The buffer begins with a page: some processors copy to the next few bytes at a tenth of their
speed (docs/decisions/0033-tls.md).
"""

import mmap
import socket
import sys


def main() -> None:
    buffer_size, total = int(sys.argv[1]), int(sys.argv[2])
    buffer = memoryview(mmap.mmap(-1, buffer_size))
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            connection, _ = server.accept()
            with connection:
                left = total
                while left > 0:
                    got = connection.recv_into(buffer[: min(left, buffer_size)])
                    if got == 0:
                        break
                    left -= got
                else:
                    connection.sendall(b"k")


if __name__ == "__main__":
    main()
