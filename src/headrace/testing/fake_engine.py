"""An engine that computes nothing: every row gets a token a step, at a given pace, so that only its courier works.

``python -m headrace.testing.fake_engine SOCKET REVISION STEP_MS MAX_ROWS VOCAB_SIZE`` serves one courier after the
other.
"""

import os
import select
import socket
import sys
import time
from pathlib import Path

from headrace.lifetime import end_with_parent, exit_on_sigterm
from headrace.workers.channel import Add, Drop, Finish, Ready, Tokens
from headrace.workers.engine.link import CourierGoneError, CourierLink

_KV_TOKENS = 1 << 24


def serve(listener: socket.socket, ready: Ready, step_ms: float, vocab_size: int) -> None:
    """Serve one courier until it has gone.

    Args:
        listener: where it connects.
        ready: what it is told first.
        step_ms: of a step; 0: as fast as the courier reads.
        vocab_size: token ids go round below it.
    """
    connection, _ = listener.accept()
    with connection:
        link = CourierLink(connection)
        link.send(ready)
        left: dict[int, int] = {}
        number = 0
        next_s = time.perf_counter()
        try:
            while True:
                for message in link.receive(0 if left else 1.0):
                    match message:
                        case Add():
                            left[message.row] = message.params.max_tokens - len(message.output_ids)
                        case Drop():
                            for row in message.rows:
                                left.pop(row, None)
                if not left:
                    next_s = time.perf_counter()
                    continue
                number += 1
                for row in left:
                    left[row] -= 1
                step: list[tuple[int, int, Finish]] = [
                    (row, (row * 7 + number * 13) % vocab_size, "" if num else "length") for row, num in left.items()
                ]
                left = {row: num for row, num in left.items() if num}
                link.send(Tokens(tuple(step), step_ms=step_ms, num_tokens=len(step)))
                next_s += step_ms / 1000
                time.sleep(max(0.0, next_s - time.perf_counter()))
        except CourierGoneError:
            return


def main() -> None:
    """Listen, and serve couriers until the parent ends."""
    exit_on_sigterm()
    end_with_parent()
    path, revision, step_ms, max_rows, vocab_size = sys.argv[1:]
    Path(path).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            if select.select([listener], [], [], 1.0)[0]:
                serve(
                    listener, Ready(os.getpid(), revision, int(max_rows), _KV_TOKENS), float(step_ms), int(vocab_size)
                )


if __name__ == "__main__":
    main()
