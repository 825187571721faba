"""A command of dlhw with its surroundings, and how it ended."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Interruption:
    """A signal for a running command.

    Args:
        number: of the signal.
        after: seconds since the start of the command, or since the interruption before this one.
        when: sent once this is true; it is evaluated every few milliseconds.
        whole_group: sent to all processes of the command, as a terminal does with Ctrl-C.
    """

    number: int
    after: float = 0.0
    when: Callable[[], object] | None = None
    whole_group: bool = False


@dataclass(frozen=True)
class Command:
    """A command line, or a Python function, with its surroundings.

    Args:
        arguments: of the command line.
        at: the working directory.
        module: ``dlhw.train``, ``dlhw.compare`` or ``dlhw.predict``.
        function: called instead of the module, without arguments.
        env: changes of the environment; None removes a variable.
        stdin: descriptor or CLOSED; None is the empty file.
        stdout: descriptor or CLOSED; None captures the output.
        stderr: likewise.
        prepare: called in the child before the program starts, to change limits for example.
        shell: what ``prepare`` and the streams are in a shell: a format with ``{}`` for the command.
        seconds: time limit; then all processes of the command are killed.
        interruptions: signals, sent in this order.
        cold: start a new Python process instead of a fork: slower, but with everything that happens at import.
        others_seconds: the other processes of the command must end this soon after the first one; None: at any time.
    """

    arguments: tuple[str, ...]
    at: Path
    module: str = "dlhw.train"
    function: Callable[[], object] | None = None
    env: Mapping[str, str | None] = field(default_factory=dict)
    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    prepare: Callable[[], object] | None = None
    shell: str = "{}"
    seconds: float = 60.0
    interruptions: tuple[Interruption, ...] = ()
    cold: bool = False
    others_seconds: float | None = 2.0

    def text(self) -> str:
        """Return the shell line that repeats this command."""
        changes = [f"-u {name}" for name, value in self.env.items() if value is None]
        changes += [f"{name}={shlex.quote(value)}" for name, value in self.env.items() if value is not None]
        if self.function is None:
            words = ["python", "-m", self.module, *map(shlex.quote, self.arguments)]
        else:
            words = ["python", "-c", shlex.quote(f"{getattr(self.function, '__qualname__', self.function)}()")]
        line = " ".join([*(["env", *changes] if changes else []), *words])
        signals = [
            f"{signal.Signals(one.number).name} after {one.after:.3f} s{' when a condition holds' if one.when else ''}"
            for one in self.interruptions
        ]
        note = f"  # {', '.join(signals)}" if signals else ""
        return f"cd {shlex.quote(str(self.at))} && {self.shell.format(line)}{note}"


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Args:
        command: the command.
        code: its exit code, or minus the number of the signal that ended it.
        out: its output to stdout, if captured.
        err: its output to stderr, if captured.
        seconds: its duration.
        timed_out: whether it was killed at its time limit.
        sent: seconds from its start to each interruption that was sent.
        orphans: whether processes of it were running after its end; they are killed.
    """

    command: Command
    code: int
    out: str
    err: str
    seconds: float
    timed_out: bool
    sent: tuple[float, ...]
    orphans: bool

    @property
    def argv(self) -> tuple[str, ...]:
        """The arguments of the command line."""
        return self.command.arguments
