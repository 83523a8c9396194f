"""Starts of main.py that cost 1 s in place of 5: forks of a process that has imported torch and other libraries, and
nothing of this program. Starts of torchrun too, and what any of them starts in turn: torchrun's workers, the data process;
and that of a test, which is forked from another process, without torch.

Each is a process like any other: a child of the one that started it, in a session of its own, with its own command and
environment in /proc, running its script from the first line. The fork is made by a grandchild, so that the process that
asked for it, which adopts orphans just then, becomes its parent. Linux only; elsewhere WarmPopen is Popen.
"""

import ctypes
import gc
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
LIBRARIES = (
    "jinja2", "matplotlib.backends.backend_agg", "matplotlib.figure", "pydantic", "safetensors.torch", "tokenizers",
    "torch._dynamo", "torch.distributed.run", "torch.utils.tensorboard",
)  # fmt: skip
DATA_LIBRARIES = ("charset_normalizer", "datasets", "jinja2", "pyarrow.parquet", "pydantic", "tokenizers")
DATA_PROCESS = ["-P", "-m", "data.producer"]
REQUEST = 2**18  # bytes at most, of paths and environment
ROOM = 2**14  # bytes for the command of a fork, and for its environment, where the kernel looks for them
ARGUMENTS, ENVIRONMENT = (
    slice(45, 47),
    slice(47, 49),
)  # where these begin and end: fields of /proc/self/stat after the name

execute_cold = subprocess.Popen._execute_child


class Starter:
    """A process that forks: it begins with the first fork, whose environment is then what `libraries` read when they are
    imported, and ends when the last that may ask it has ended."""

    def __init__(self, libraries: tuple[str, ...] = LIBRARIES, asked: socket.socket | None = None):
        self.libraries, self.asked = libraries, asked

    def begin(self, environment: dict[str, str]) -> None:
        self.asked, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, __file__, str(theirs.fileno()), ",".join(self.libraries), " " * ROOM]
        environment = {**environment, "PROGRAM": "", "ROOM": " " * ROOM}  # it is no process of a program's
        how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "pass_fds": [theirs.fileno()]}
        with theirs:
            subprocess.Popen(command, env=environment, start_new_session=True, **how)

    def fork(self, request: dict, files: list[int]) -> int:
        """The process id of a child of this process that runs `request` with `files` as its three streams."""
        if self.asked is None:
            self.begin(request["environment"])
        prctl = ctypes.CDLL(None).prctl
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            socket.send_fds(self.asked, [json.dumps(request).encode()], files)
            return int(self.asked.recv(64))
        finally:
            prctl(PR_SET_CHILD_SUBREAPER, 0)

    def execute(self, process: subprocess.Popen, args, *rest) -> None:
        """What Popen._execute_child does, but that nothing is honoured except cwd, env and the three streams."""
        cwd, env, pipes = rest[4], rest[5], rest[9:15]
        p2cread, _, _, c2pwrite, _, errwrite = pipes
        files = [inherited if file < 0 else file for inherited, file in enumerate((p2cread, c2pwrite, errwrite))]
        environment = dict(os.environ if env is None else env)
        process.pid = self.fork({"command": args, "folder": str(cwd or Path.cwd()), "environment": environment}, files)
        process._child_created = True
        process._close_pipe_fds(*pipes)


class WarmProcess(subprocess.Popen):
    """A Popen of [sys.executable, ...] with cwd, env, three streams and a new session."""

    starter = Starter()

    def _execute_child(self, *how) -> None:
        self.starter.execute(self, *how)


WarmPopen = WarmProcess if sys.platform == "linux" else subprocess.Popen


def start_warm(starter: Starter) -> None:
    """Let this process start torchrun's workers and the data process warm too."""

    def execute(process, args, *rest):
        warm = [*args][1:2] == ["-u"] or [*args][1:] == DATA_PROCESS
        (starter.execute if warm else execute_cold)(process, args, *rest)

    subprocess.Popen._execute_child = execute


def start_data_warm() -> None:
    """Let this process start the data process warm, unless a test has changed the environment: libraries have read it."""
    starter, environment = Starter(DATA_LIBRARIES), without_test(os.environ)

    def execute(process, args, *rest):
        unchanged = without_test(os.environ) == environment
        (starter.execute if unchanged and [*args][1:] == DATA_PROCESS else execute_cold)(process, args, *rest)

    subprocess.Popen._execute_child = execute


def without_test(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name != "PYTEST_CURRENT_TEST"}


def serve(requests: socket.socket) -> tuple[dict, socket.socket]:
    """Returns in each fork, with what it shall run and another that forks; ends when nobody is left who asks."""
    while True:
        message, files, *_ = socket.recv_fds(requests, REQUEST, 3)
        if not message:
            os._exit(0)
        reader, writer = os.pipe()
        if middle := os.fork():
            os.close(writer)
            os.waitpid(middle, 0)  # the fork is an orphan now, and adopted
            requests.send(os.read(reader, 64) or b"no process")
            for file in (reader, *files):
                os.close(file)
            continue
        middle = os.getpid()
        if os.fork():
            os._exit(0)
        requests.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            ours.close()
            close_but(theirs)
            requests = theirs  # a child of the fork, which alone can adopt what is forked here; not of its session
            continue
        theirs.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.setsid()
        os.write(writer, str(os.getpid()).encode())
        close_but(ours)
        while os.getppid() == middle:
            time.sleep(0.0001)
        return json.loads(message), ours


def close_but(kept: socket.socket) -> None:
    """Close all files but `kept` and the three streams."""
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number != kept.fileno():
            with suppress(OSError):  # the listing's own
                os.close(number)


def become(command: list[str], folder: str, environment: dict[str, str]) -> None:
    """Run `command` as the interpreter would, with the environment and in the folder that were asked for."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in environment
    tempfile.tempdir = None  # libraries have asked for it, in another environment
    show(command, ARGUMENTS)
    show([f"{name}={value}" for name, value in environment.items()], ENVIRONMENT)
    first, *rest = command[1:]
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    if first == "-u":
        sys.stdout.reconfigure(write_through=True)
        first, *rest = rest
    if first == "-P":
        sys.path[:1] = paths
        first, *rest = rest
    else:
        sys.path[:1] = [folder if first == "-m" else str(Path(first).parent), *paths]
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


def show(words: list[str], place: slice) -> None:
    """Let /proc say this of the process: what it was started with is written over."""
    begin, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[place])
    content = "\0".join([*words, ""]).encode()[: end - begin]
    ctypes.memmove(begin, content.ljust(end - begin, b"\0"), end - begin)


if __name__ == "__main__":
    for name in sys.argv[2].split(","):
        importlib.import_module(name)
    gc.freeze()
    request, asked = serve(socket.socket(fileno=int(sys.argv[1])))
    start_warm(Starter(asked=asked))
    become(**request)
