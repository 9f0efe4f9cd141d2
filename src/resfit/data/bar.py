"""Progress bar for downloading and decoding, the two steps that may take minutes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr if it is a terminal; yield a function that advances the bar by a number of steps."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True, emoji=False)
    if not console.is_terminal:  # older versions of rich end even a disabled bar with a line break
        yield lambda step: None
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda step: progress.advance(task, step)
