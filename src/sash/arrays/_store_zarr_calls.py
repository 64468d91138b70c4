"""zarr's asynchronous calls, made in the thread that asks for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


def may_call_here() -> bool:
    """Whether no event loop runs in this thread, as one does in a notebook: there can be one only."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


def called_here(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """What a coroutine returns, all of it done in this thread.

    zarr's own loop hands what it reads and decodes to threads, and each result stays in a cycle of two futures (a concurrent one keeps its
    callbacks, and these keep it) until the garbage collector comes by: chunks of calls before were still there, as many as chance had it.
    Here a result is there before anyone waits for it, so that there is no callback, and it goes with its last owner. Workers read and
    write side by side already.
    """
    loop = asyncio.new_event_loop()
    loop.set_default_executor(_AtOnce(1))
    try:
        return loop.run_until_complete(work())
    finally:
        loop.close()


class _AtOnce(ThreadPoolExecutor):
    """Does what it is given when it is given."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **words: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **words))
        except BaseException as error:
            done.set_exception(error)
        return done
