"""Results of many tasks, in their order, with few of them under way: a bound on memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    submit: Callable[[Item], "Future[Result]"], items: Iterable[Item], most: int
) -> Iterator[Result]:
    """Yield the results of items in order, with at most `most` that are submitted and not yet taken."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        if len(waiting) == most:
            yield waiting.popleft().result()
        waiting.append(submit(item))
    while waiting:
        yield waiting.popleft().result()
