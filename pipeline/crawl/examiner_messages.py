"""What an examiner and its child say to each other: a pipe each way, and memory that both share."""

import mmap
import struct
from collections.abc import Callable, Iterable, Iterator

COUNT = struct.Struct("<I")
"""Begins an exchange: the number of messages, which is that of the answers."""
ROOM = 2**20
"""Bytes of messages in the shared memory, and as many of answers, one behind the other; what
exceeds them goes through the pipes, at three times the cost."""
MESSAGES, ANSWERS = COUNT.size, COUNT.size + ROOM
"""Where they begin; first stands how many messages of the exchange are done."""
SHARED_BYTES = ANSWERS + ROOM
READY = b"ready"
"""The first answer, once everything is loaded."""

_HEADER = struct.Struct("<I?")  # Of each: its length, and whether it lies in the shared memory.


def lay(messages: Iterable[bytes], shared: mmap.mmap, start: int) -> list[bytes]:
    """Lay messages into the shared memory from `start` on, while there is room.

    Returns:
        What goes through the pipe: the headers of all, and each message that had no room.
    """
    headers, others, place = [], [], start
    for message in messages:
        end = place + len(message)
        is_shared = end <= start + ROOM
        headers.append(_HEADER.pack(len(message), is_shared))
        if is_shared:
            shared[place:end] = message
            place = end
        else:
            others.append(message)
    return [b"".join(headers), *others]


def pick_up(
    number: int, shared: mmap.mmap, start: int, receive: Callable[[int], bytes]
) -> Iterator[bytes]:
    """Yield the messages that `lay` laid.

    Args:
        number: How many.
        shared: The same memory.
        start: As `lay` had it.
        receive: Reads so many bytes from the pipe.

    Raises:
        EOFError: More is said to lie in the memory than has room there.
    """
    place = start
    for size, is_shared in _HEADER.iter_unpack(receive(number * _HEADER.size)):
        end = place + size
        if not is_shared:
            yield receive(size)
        elif end > start + ROOM:
            raise EOFError
        else:
            yield shared[place:end]
            place = end
