"""Requests on a thread of their own, one after the other, while a test does something else."""

import hashlib
from abc import ABC, abstractmethod
from threading import Event, Thread


def body_of(key: str, sizes: tuple[int, ...]) -> bytes:
    """Bytes that belong to a key, of one of the sizes."""
    number = hashlib.sha256(key.encode()).digest()[0]
    return hashlib.shake_256(key.encode()).digest(sizes[number % len(sizes)])


class SteadyLoad(ABC):
    """Runs until told to stop. Subclasses set their fields first: the thread starts here."""

    def __init__(self) -> None:
        self._stop = Event()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Lets the request under way end."""
        self._stop.set()
        self._thread.join()

    @abstractmethod
    def _run(self) -> None:
        """Sends requests until `_stop` is set."""
