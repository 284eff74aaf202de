"""Call a function in a forked child, so that what it leaves behind dies with it.

Preparing data starts thread pools (tokenizers, Arrow). A process that has threads must not be
forked, and on a CPU the ranks are forked from the launcher.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

from atom.errors import UserError

T = TypeVar("T")


def call(function: Callable[..., T], *arguments: object) -> T:
    """Return ``function(*arguments)``, computed in a child. The result must pickle.

    Raises:
        UserError: as the function raised it.
        RuntimeError: any other failure, with the child's traceback.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        outcome, value = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{function.__name__} ended with exit code {process.exitcode}") from None
    finally:
        receiver.close()
    process.join()
    if outcome == "result":
        return value
    if isinstance(value, UserError):
        raise value
    raise RuntimeError(f"{function.__name__} failed:\n{value}")


def _answer(sender: Connection, function: Callable[..., T], arguments: tuple[object, ...]) -> None:
    try:
        sender.send(("result", function(*arguments)))
    except UserError as error:
        sender.send(("error", error))
    except BaseException:
        sender.send(("error", traceback.format_exc()))
    finally:
        sender.close()
