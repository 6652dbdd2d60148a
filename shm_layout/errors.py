"""What can go wrong with a segment, as one tree.

SegmentError
├── SegmentMissingError        no segment of that name
├── SegmentInUseError          create(): a live process owns it
├── SegmentMismatchError       attach(): not this layout's, or not whole; found and expected are set
│   └── SegmentDeadError       its owner is dead, or it is from before the machine's last boot
├── SegmentReadError           nothing published, torn, checksum, or out of bounds
│   └── SegmentEmptyError      nothing was published yet
├── PayloadRejectedError       a settings or directive payload that its reader would refuse; reason is set
├── ControllerLockedError      another controller holds the segment
└── ControllerSupersededError  a newer controller took the segment over
"""


class SegmentError(Exception):
    """Base of all errors of this package."""


class SegmentMissingError(SegmentError):
    """No segment of that name."""


class SegmentInUseError(SegmentError):
    """A live process owns the segment of that name."""


class SegmentMismatchError(SegmentError):
    """The segment may not be attached; the message names both sides' values."""

    def __init__(self, message: str, found: int, expected: int) -> None:
        super().__init__(message)
        self.found = found
        self.expected = expected


class SegmentDeadError(SegmentMismatchError):
    """The segment's owner is dead."""


class SegmentReadError(SegmentError):
    """A block could not be read."""


class SegmentEmptyError(SegmentReadError):
    """Nothing was published in this block yet."""


class PayloadRejectedError(SegmentError):
    """A payload that its reader would refuse; reason is one of REJECTS."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ControllerLockedError(SegmentError):
    """Another controller holds the segment's lock."""


class ControllerSupersededError(SegmentError):
    """A newer controller took the segment over; this one must stop."""
