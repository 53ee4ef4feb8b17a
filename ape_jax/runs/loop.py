"""The training loop on the host, which Ctrl-C or SIGTERM stops between two chunks of updates."""

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence

from ape_jax.algorithms import TrainState
from ape_jax.runs.callbacks import Callback
from ape_jax.runs.directory import RunDirectory
from ape_jax.training.trainer import Chunk


class Interrupted(KeyboardInterrupt):
    """A signal stopped the program; what was computed before it is saved."""

    def __init__(self, number: int):
        """Exit with 128 + the number of the signal, by convention."""
        super().__init__(number)
        self.exit_code = 128 + number


class StopRequest:
    """Whether a signal has asked this process to stop.

    A signal raises ``Interrupted`` until ``at_once`` is set to False. Then it is only noted.
    """

    number: int | None = None
    """Number of the signal; None before there was one."""
    at_once: bool = True

    def __bool__(self) -> bool:
        return self.number is not None

    def receive(self, number: int, frame: object) -> None:
        """Answer a signal."""
        self.number = number
        if self.at_once:
            self.obey()

    def obey(self) -> None:
        """Raise ``Interrupted`` if a signal was noted."""
        if self.number is not None:
            raise Interrupted(self.number)


@contextlib.contextmanager
def stop_requested() -> Iterator[StopRequest]:
    """Answer Ctrl-C and SIGTERM inside this context, and restore the old answers after it.

    Only the main thread of a program gets signals; in any other thread nothing is ever requested.
    """
    stop, before = StopRequest(), {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, stop.receive)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fit(
    chunks: Iterable[Chunk], run: RunDirectory, callbacks: Sequence[Callback] = ()
) -> TrainState:
    """Train to the end, and keep metrics and checkpoints in the run's directory.

    A signal while the first chunk is compiled and computed ends the training at once, because there
    is nothing to save. A later one ends it after the chunk that is being computed, which is saved.

    Args:
      chunks: the output of ``Trainer.chunks``, from ``run.start`` on.
      run: the open directory.
      callbacks: called with every chunk, in this order.

    Returns:
      The last state [K, …]. Its checkpoint may still be being written; ``run`` waits for it.

    Raises:
      Interrupted: by Ctrl-C or SIGTERM.
      OSError: the metrics cannot be written.
    """
    state = run.start.state
    with contextlib.ExitStack() as entered, stop_requested() as stop:
        for callback in callbacks:
            entered.enter_context(callback)
        for chunk in chunks:
            stop.at_once = False
            run.append(chunk)
            for callback in callbacks:
                callback(chunk)
            if stop or run.due(chunk):
                run.save(chunk)
            state = chunk.state
            if stop:
                break
        if stop:
            run.wait()
        stop.obey()
    assert state is not None, "a run has at least one update"
    return state
