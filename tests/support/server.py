"""A server that imports the libraries once and forks for every program that a test starts.

A new Python process needs seconds to import torch; a forked one has it already. A forked process also has its own
process id, environment, folder, output, signals and exit code. ``support.processes`` runs this file.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

DRILLS = Path(__file__).parents[2] / "scripts" / "drills"
sys.path[0] = str(DRILLS)
from preloading import import_everything, unload  # noqa: E402

sys.path.pop(0)  # their modules, and those beside this file, could hide others


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return the next request and its files. End this process when the connection is closed."""
    header, files, _, _ = socket.recv_fds(connection, 4, 8)
    if not header:
        os._exit(0)
    content = b""
    while len(content) < int.from_bytes(header, "big"):
        content += connection.recv(1 << 16)
    return json.loads(content), files


def serve(connection: socket.socket) -> dict[str, Any]:
    """Fork twice for every request, and return the request in the second child, which runs the program.

    The first child waits for the second one and reports its process id and its exit code.
    """
    while True:
        request, (out, err, report) = receive(connection)
        if os.fork():
            for file in (out, err, report):
                os.close(file)
            continue
        connection.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        child = os.fork()
        if child:
            os.close(out)
            os.close(err)
            os.write(report, f"{child}\n".encode())
            _, status = os.waitpid(child, 0)
            os.write(report, f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os._exit(0)
        os.close(report)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(out)
        os.close(err)
        return request


def run(request: dict[str, Any]) -> None:
    """Run a request as ``python -m MODULE ARGUMENT...`` or ``python -c CODE ARGUMENT...`` does."""
    os.setsid()
    os.environ.clear()
    os.environ.update(request["env"])
    tempfile.tempdir = None  # the next use reads TMPDIR
    os.chdir(request["at"])
    sys.path.insert(0, os.getcwd())
    option, subject, *arguments = request["arguments"]
    sys.argv[:] = [option, *arguments]
    if option == "-m":
        unload(subject)  # it runs as __main__, and other modules may import it again
        runpy.run_module(subject, run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(compile(subject, "<string>", "exec"), main.__dict__)


if __name__ == "__main__":
    import_everything()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system removes ended children
    run(serve(socket.socket(fileno=int(sys.argv[1]))))
