"""The engine's end of its connection to a courier: messages in and out of one Unix socket."""

import select
import socket
from collections import deque

from headrace.workers.channel import Decoder, Message, encode

_READ_BYTES = 1 << 16
#: Nearly a thousand steps of 256 rows: a courier may be away for seconds before a step waits for it, and stop strings
#: and cancelled requests, which it knows of, act so much later at most.
MOST_UNSENT_BYTES = 1 << 20


class CourierGoneError(ConnectionError):
    """Raised when the courier's end of the connection is closed."""


class CourierLink:
    """One connection.

    Args:
        connection: a connected socket; the link makes it non-blocking, the caller closes it.
        most_unsent_bytes: kept for a courier that does not read; then ``send`` waits for it. 0: nothing is kept.
    """

    def __init__(self, connection: socket.socket, most_unsent_bytes: int = MOST_UNSENT_BYTES) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._most_unsent_bytes = most_unsent_bytes
        self._unsent = bytearray()
        self._decoder = Decoder()
        self._inbox: deque[Message] = deque()

    def receive(self, timeout_s: float) -> list[Message]:
        """Take all messages that have arrived, and send on what was kept; if there are none, wait.

        Args:
            timeout_s: how long to wait at most for the first byte, or for room to send; 0 only looks.

        Raises:
            CourierGoneError: the courier closed the connection or died.
            DecodeError: it sent something that is not a message.
        """
        self._write()
        if not self._inbox and timeout_s > 0:
            select.select([self._socket], [self._socket] if self._unsent else [], [], timeout_s)
            self._write()
        while self._read():
            pass
        messages = list(self._inbox)
        self._inbox.clear()
        return messages

    def send(self, message: Message) -> None:
        """Send one message, or keep what a busy courier has no room for until the next call of either kind.

        So a step does not wait for a courier that is at something else. Where too much is kept, this does, and goes on
        reading meanwhile: two ends that only write to each other would wait for ever.

        Raises:
            CourierGoneError: the courier closed the connection or died.
            DecodeError: it sent something that is not a message.
        """
        self._unsent += encode(message)
        self._write()
        while len(self._unsent) > self._most_unsent_bytes:
            readable, _, _ = select.select([self._socket], [self._socket], [])
            if readable:
                self._read()
            self._write()

    def _write(self) -> None:
        """Send as much of what is kept as there is room for now."""
        while self._unsent:
            try:
                num_sent = self._socket.send(self._unsent)
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError) as error:
                raise CourierGoneError("the courier is gone") from error
            del self._unsent[:num_sent]

    def _read(self) -> bool:
        """Read what one call gives into the inbox; False if there is nothing to read now."""
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        except ConnectionResetError as error:
            raise CourierGoneError("the courier is gone") from error
        if not data:
            raise CourierGoneError("the courier closed the connection")
        self._inbox.extend(self._decoder.feed(data))
        return True
