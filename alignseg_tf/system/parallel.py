"""Run a function over many items in parallel, in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    ahead: int = 64,
    workers: int | None = None,
) -> Iterator[Result]:
    """Yield the results for all items in order, from threads that are at most `ahead` in front.

    Pillow decodes without holding Python's lock. The number of threads is `workers`, or Python's
    default.
    """
    with ThreadPoolExecutor(workers) as pool:
        pending: deque = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
