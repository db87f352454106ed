"""The engine's end of its connection to a courier: messages in and out of one Unix socket."""

import select
import socket
from collections import deque

from headrace.workers.channel import Decoder, Message, encode

_READ_BYTES = 1 << 16


class CourierGoneError(ConnectionError):
    """Raised when the courier's end of the connection is closed."""


class CourierLink:
    """One connection.

    Args:
        connection: a connected socket; the link makes it non-blocking, the caller closes it.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._decoder = Decoder()
        self._inbox: deque[Message] = deque()

    def receive(self, timeout_s: float) -> list[Message]:
        """Take all messages that have arrived; if there are none, wait.

        Args:
            timeout_s: how long to wait at most for the first byte; 0 only looks.

        Raises:
            CourierGoneError: the courier closed the connection or died.
            DecodeError: it sent something that is not a message.
        """
        if not self._inbox and timeout_s > 0:
            select.select([self._socket], [], [], timeout_s)
        while self._read():
            pass
        messages = list(self._inbox)
        self._inbox.clear()
        return messages

    def send(self, message: Message) -> None:
        """Send one message, waiting as long as the courier takes to read it.

        While it waits it goes on reading: two ends that only write to each other would wait for ever.

        Raises:
            CourierGoneError: the courier closed the connection or died.
            DecodeError: it sent something that is not a message.
        """
        data = memoryview(encode(message))
        while data:
            try:
                data = data[self._socket.send(data) :]
            except BlockingIOError:
                readable, _, _ = select.select([self._socket], [self._socket], [])
                if readable:
                    self._read()
            except (BrokenPipeError, ConnectionResetError) as error:
                raise CourierGoneError("the courier is gone") from error

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
