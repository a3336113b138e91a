"""A plain TCP relay in front of a server, whose connections a test can cut or freeze as broken networks do."""

import socket
import struct
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


class Relay:
    """Listens on a port of its own (`target`) and passes bytes both ways, until `cut` resets every connection.

    `bytes_per_second`: what the server's end is read at, at most; 0: at once.
    """

    def __init__(self, server: str, bytes_per_second: int = 0):
        host, port = server.split(":")
        self._server, self._pace = (host, int(port)), bytes_per_second
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._frozen: set[socket.socket] = set()
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # what waits in accept() is told, too
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Reset every connection that there is; new ones are passed on."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                with suppress(OSError):  # the other side may have closed it
                    end.shutdown(socket.SHUT_RD)
                end.close()

    def freeze(self) -> None:
        """Take everything on the connections that there are, and pass nothing on: their ends hear nothing any more."""
        self._frozen = {end for pair in self._pairs for end in pair}

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._server)
            self._pairs.append((client, server))
            for source, sink, pace in ((client, server, 0), (server, client, self._pace)):
                threading.Thread(target=self._pass, args=(source, sink, pace), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, pace: int) -> None:
        try:
            while data := source.recv(1024 if pace else 65536):
                if sink not in self._frozen:
                    sink.sendall(data)
                if pace:
                    time.sleep(len(data) / pace)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return
