"""Exact duplicates: equal bytes are one image."""

from collections.abc import Iterable


def pick_winners(images: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Choose which of several equal files is kept: the one with the smallest path.

    The answer does not depend on the order of `images`.

    Args:
        images: (content hash, source path) of each file.

    Returns:
        Content hash -> the path that is kept.
    """
    winners: dict[str, str] = {}
    for content_hash, path in images:
        winners[content_hash] = min(path, winners.get(content_hash, path))
    return winners
