"""Names of the libp2p protocols and the numbers of their frames. Numbers are never reused."""

from enum import IntEnum
from typing import Final

NOISE: Final = "/meshd/noise/1"
CONTROL: Final = "/meshd/control/1"
TASK: Final = "/meshd/task/1"
AD_NAMESPACE: Final = "meshd"


class ControlFrame(IntEnum):
    """Frames of the control stream: one per pair of neighbours, kept open."""

    HELLO = 1
    HEARTBEAT = 2
    ADS = 4
    BYE = 5


class TaskFrame(IntEnum):
    """Frames of a task stream. After END (or DECLINE) the same stream may carry the next OFFER."""

    OFFER = 1
    ACCEPT = 2
    DECLINE = 3
    SEALED = 4


class Sealed(IntEnum):
    """What is inside a SEALED frame, once opened with the attempt's secret stream."""

    STARTED = 1
    TOKENS = 2
    HEARTBEAT = 3
    FINISHED = 4
    ENDED = 5
    CANCEL = 6
    RENEW = 7
    SCORED = 8
    LOADING = 9
