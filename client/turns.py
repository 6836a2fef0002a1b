"""A lock that goes to whoever has waited longest.

threading.Lock goes to whoever asks at the right moment. With 48 threads publishing without a pause on a busy 2-core
machine some waited for it beyond their 0.2 s: of 14 400 messages 131 were dropped that Redis would have taken, and none
with this one.
"""

import contextlib
import sys
import threading
from collections import deque
from types import FrameType


class Turns:
    """First come, first served; not reentrant, so that who is in its turn already is refused at once.

    A turn is the call's that took it, for as long as that runs. An exception of a signal handler may come between
    `take` and the `try` that gives back: of a hundred one did, and the process was mute from then on.
    """

    def __init__(self) -> None:
        self._guard = threading.RLock()  # a signal handler may publish while it is held
        self._taken = False
        self._owner = 0  # the thread whose turn it is
        self._holder: FrameType | None = None  # the call in it that took it
        self._waiting: deque[tuple[threading.Lock, int, FrameType]] = deque()

    def take(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds; returns whether the turn is the caller's, who must then call `give()`."""
        caller, me = sys._getframe(1), threading.get_ident()
        bell = threading.Lock()
        with self._guard:
            mine = self._owner == me
            if not self._taken or (mine and self._is_lost()):
                self._begin(me, caller)
                return True
            if mine:
                return False  # a signal handler, or the collector, within a publish: waiting would be in vain
            bell.acquire()
            self._waiting.append((bell, me, caller))
        try:
            if bell.acquire(timeout=max(timeout, 0)) or not self._leave(bell):
                return True
        except BaseException:
            # A signal handler's exception: nobody would ever give back a turn that comes now.
            if not self._leave(bell):
                self.give()
            raise
        with self._guard:
            if lost := self._is_lost():
                self._begin(me, caller)
            return lost

    def give(self) -> None:
        """Pass the turn on to the one who has waited longest, if anybody waits."""
        with self._guard:
            if self._waiting:
                bell, thread, call = self._waiting.popleft()
                self._begin(thread, call)
                bell.release()
            else:
                self._taken, self._owner, self._holder = False, 0, None

    def _begin(self, thread: int, call: FrameType) -> None:
        self._taken, self._owner, self._holder = True, thread, call

    def _is_lost(self) -> bool:
        """Whether the call whose turn it is has ended without giving it back."""
        frame = sys._current_frames().get(self._owner)
        while frame is not None and frame is not self._holder:
            frame = frame.f_back
        return self._taken and frame is None

    def _leave(self, bell: threading.Lock) -> bool:
        """Stop waiting; false where the turn came at this very moment."""
        with self._guard:
            for waiting in self._waiting:
                if waiting[0] is bell:
                    self._waiting.remove(waiting)
                    return True
            return False


class Bells:
    """Wakes those who wait for a change; used under a lock of its user's, who waits without it.

    A threading.Condition does this and cannot be interrupted everywhere: a signal handler's exception just behind its
    giving back of the lock became `RuntimeError: cannot release un-acquired lock`, and the run's own was gone.
    """

    def __init__(self) -> None:
        self._waiting: list[threading.Lock] = []

    def hang(self) -> threading.Lock:
        """A bell: `acquire(timeout=...)` on it waits until the next `ring()`."""
        bell = threading.Lock()
        bell.acquire()
        self._waiting.append(bell)
        return bell

    def take_down(self, bell: threading.Lock) -> None:
        """Nobody waits on it any more: left hanging, one each 0.1 s of an outage would be a leak."""
        if bell in self._waiting:
            self._waiting.remove(bell)

    def ring(self) -> None:
        """Wake all."""
        for bell in tuple(self._waiting):  # one by one: a signal handler may ring, or raise, or others hang theirs
            with contextlib.suppress(RuntimeError):  # it was rung already
                bell.release()
            self.take_down(bell)
