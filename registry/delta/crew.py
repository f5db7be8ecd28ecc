"""Work on segments side by side, and torch kernels in pieces that wake no thread team.

torch spreads an operation over its own threads as soon as a vector has 32,768 elements. On an idle machine that gains little here, and
on a busy one the threads wait for each other: 438 ns an element were measured in place of 0.4. So kernels are called on shorter pieces,
and whole segments go to a few threads of ours, which sleep while they wait.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from ...kernels import planes

A = TypeVar("A")
B = TypeVar("B")
GRAIN = (1 << 15) - 64  # elements: just below what torch hands to its threads
LONG = 1 << 18  # elements of a piece when torch has one thread anyway
PAIR = 1 << 18  # the same for two planes of sixteen bits
MOST = 4  # threads of ours

_WORKER = threading.local()
_COUNT = threading.Lock()
_alone = 0  # blocks of one_thread that are open
_before = 1  # torch's threads outside them
_POOLS: dict[int, ThreadPoolExecutor] = {}  # by process: threads do not survive a fork


def each(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """`function` of every item, in order; several at a time where there are processors for it."""
    work = list(items)
    if len(work) < 2 or _processors() < 2 or getattr(_WORKER, "busy", False):
        return [function(item) for item in work]
    return list(_pool().map(function, work))


def in_order(function: Callable[[A], B], items: Sequence[A]) -> Iterator[B]:
    """As `each`, but one result after the other, and no more of them in memory than are computed at a time."""
    if len(items) < 2 or _processors() < 2 or getattr(_WORKER, "busy", False):
        yield from map(function, items)
        return
    yield from drawn(_pool(), function, items, min(MOST, _processors()) + 1)


def drawn(pool: ThreadPoolExecutor, function: Callable[[A], B], items: Iterable[A], most: int) -> Iterator[B]:
    """Results of a pool's work in the order of the items; no more than `most` are ever under way or waiting."""
    waiting: deque[Future[B]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _pool() -> ThreadPoolExecutor:
    with _COUNT:
        if os.getpid() not in _POOLS:
            _POOLS[os.getpid()] = ThreadPoolExecutor(min(MOST, _processors()), "mlc-segment", initializer=enlist)
        return _POOLS[os.getpid()]


def enlist() -> None:
    """This thread does itself what it needs: a worker that waited for others of its crew could wait for ever."""
    _WORKER.busy = True


@contextmanager
def alone(yes: bool = True) -> Iterator[None]:
    """Inside, this thread does itself what it needs (unless not `yes`): two that share a cache take more processor time than one."""
    before = getattr(_WORKER, "busy", False)
    _WORKER.busy = before or yes
    try:
        yield
    finally:
        _WORKER.busy = before


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch work alone inside: for matrix products, whose threads wait for each other in the same way and cannot be avoided by size.

    The setting belongs to the process. Another thread that computes meanwhile does so with one thread, too.
    """
    global _alone, _before
    with _COUNT:
        if _alone == 0:
            _before = torch.get_num_threads()
            torch.set_num_threads(1)
        _alone += 1
    try:
        yield
    finally:
        with _COUNT:
            _alone -= 1
            if _alone == 0:
                torch.set_num_threads(_before)


def pieces(count: int, long: int = LONG) -> Iterator[slice]:
    """Slices of a vector that are short enough for one thread; `long` where torch has only one."""
    step = GRAIN if torch.get_num_threads() > 1 else long
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def delta_planes(target: Tensor, base: Tensor) -> Tensor:
    """`kernels.planes.delta_planes`, piece by piece."""
    out = torch.empty(target.element_size(), len(target), dtype=torch.uint8)
    for part in pieces(len(target)):
        out.numpy()[:, part] = planes.delta_planes(target[part], base[part]).numpy()
    return out


def undelta_planes(coded: Tensor, base: Tensor, out: Tensor) -> None:
    """`kernels.planes.undelta_planes`, piece by piece, into `out` `[n]`."""
    for part in pieces(len(base)):
        out[part] = planes.undelta_planes(coded[:, part], base[part])


def split_planes(x: Tensor) -> Tensor:
    """`kernels.planes.split_planes`, piece by piece."""
    out = torch.empty(x.element_size(), len(x), dtype=torch.uint8)
    for part in pieces(len(x)):
        out.numpy()[:, part] = planes.split_planes(x[part]).numpy()
    return out


def join_planes(coded: Sequence[Tensor], out: Tensor) -> None:
    """`kernels.planes.join_planes`, piece by piece, into `out` `[n]`, from as many vectors as there are planes."""
    if len(coded) == 2 and out.dtype in planes.ORDERED:
        low, high = coded
        room = torch.empty(min(PAIR, len(out)), dtype=torch.int16)
        for part in pieces(len(out), PAIR):
            planes.join_pair(low[part], high[part], out[part], room)
        return
    for part in pieces(len(out)):
        out[part] = planes.join_planes(torch.stack([plane[part] for plane in coded]), out.dtype)
