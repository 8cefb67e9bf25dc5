"""The progress bar of long calls, drawn by ``rich`` if it is asked for."""

import contextlib
from collections.abc import Callable, Iterator

import jax


@contextlib.contextmanager
def bar(progress: bool, what: str, start: int, count: int) -> Iterator[Callable[[int], None]]:
    """Gives a function that shows how many of ``count`` are finished; it does nothing without ``progress``."""
    if not progress or jax.process_index() > 0:
        yield lambda finished: None
        return
    try:
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress
    except ImportError as error:
        raise ImportError("progress=True needs rich: pip install 'jaxprune[progress]'") from error
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True)) as drawn:
        task = drawn.add_task(what, total=count, completed=start)
        yield lambda finished: drawn.update(task, completed=finished)
