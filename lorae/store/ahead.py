"""Reading while the last result is used: a storage may take 25 ms for every answer."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

READERS = 32  # threads; they wait
MAX_AHEAD_BYTES = 2**28  # of results that wait to be used

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    function: Callable[[T], R],
    items: Iterable[T],
    size: Callable[[R], int] = lambda result: 0,
    num_threads: int = READERS,
) -> Iterator[R]:
    """`function` of each item, in order, computed by threads before it is asked for.

    Args:
        size: bytes of a result. Only so many are computed ahead as fit into MAX_AHEAD_BYTES if all are like
            the largest so far; the first one is computed alone.
    """
    rest, waiting, most, largest = iter(items), deque[Future[R]](), 1, 1
    pool = ThreadPoolExecutor(num_threads)
    try:
        while True:
            waiting += (pool.submit(function, item) for item in itertools.islice(rest, most - len(waiting)))
            if not waiting:
                return
            result = waiting.popleft().result()
            largest = max(largest, size(result))
            most = max(1, min(2 * num_threads, MAX_AHEAD_BYTES // largest))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
