"""How the gate's steps say that an image is not taken."""

from pipeline.crawl.item import Reason


class RefusedError(Exception):
    """An image is quarantined for `reason`."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason
