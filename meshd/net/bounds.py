"""How much one connection may hold of our memory, whatever its peer does."""

from typing import Final

MAX_GROWTH_BYTES: Final = 32 * 1024 * 1024
"""What the windows of one connection may grow by in all: fast for a few streams, and no peer fills our memory by
growing all of them."""

LARGE_FRAMES: Final = 8
"""Frames beyond a first window that one peer may be in the middle of; it gets on with the others after them."""

HIGH_WATER_BYTES: Final = 512 * 1024
"""Senders wait while so much is queued for the socket."""

MAX_QUEUED_BYTES: Final = 4 * 1024 * 1024
"""Beyond this, a peer makes us answer and takes no answers: the connection ends."""
