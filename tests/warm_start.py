"""Starts of main.py that cost 1 s in place of 5: forks of a process that has imported torch and other libraries, and
nothing of this program. Starts of torchrun as well, whose workers are no forks.

Each is a process like any other: a child of the tests, in a session of its own, running main.py from its first line.
The fork is made by a grandchild, so that the tests, which adopt orphans just then, become its parent. Linux only.
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
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
LIBRARIES = (
    "matplotlib.backends.backend_agg", "matplotlib.figure", "pydantic", "safetensors.torch", "tokenizers", "torch._dynamo",
    "torch.distributed.run", "torch.utils.tensorboard",
)  # fmt: skip
REQUEST = 2**16  # bytes at most, of paths and environment


class WarmProcess(subprocess.Popen):
    """A Popen of [sys.executable, script, ...] with cwd, env, three streams and a new session; nothing else is honoured.

    What libraries read from the environment when they are imported is that of the first start.
    """

    _starter: socket.socket | None = None

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest) -> None:
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = rest[3:9]
        WarmProcess._starter = WarmProcess._starter or begin({**env, "PROGRAM": ""})  # it is no process of a program's
        request = {"script": args[1], "flags": args[2:], "folder": str(cwd), "environment": env}
        self.pid = fork(WarmProcess._starter, request, [p2cread, c2pwrite, errwrite])
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


def begin(environment: dict[str, str]) -> socket.socket:
    """Starts the process that forks; it ends when this one has ended."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, __file__, str(theirs.fileno())]
        how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "pass_fds": [theirs.fileno()]}
        subprocess.Popen(command, env=environment, start_new_session=True, **how)
    return ours


def fork(starter: socket.socket, request: dict, files: list[int]) -> int:
    """The process id of a child of this process that runs `request` with `files` as its stdin, stdout and stderr."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        socket.send_fds(starter, [json.dumps(request).encode()], files)
        return int(starter.recv(64))
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0)


def serve(requests: socket.socket) -> dict:
    """Returns in each fork, with what it shall run; ends when nobody is left who asks."""
    while True:
        message, files, *_ = socket.recv_fds(requests, REQUEST, 3)
        if not message:
            sys.exit()
        reader, writer = os.pipe()
        if parent := os.fork():
            os.waitpid(parent, 0)  # the fork is an orphan now, and adopted
            requests.send(os.read(reader, 64))
            for file in (reader, writer, *files):
                os.close(file)
        elif pid := os.fork():
            os.write(writer, str(pid).encode())
            os._exit(0)
        else:
            requests.close()
            for number, file in enumerate(files):
                os.dup2(file, number)
            os.closerange(3, max(writer, *files) + 1)
            return json.loads(message)


def become(script: str, flags: list[str], folder: str, environment: dict[str, str]) -> None:
    """Run `script` as the interpreter would, with the environment and in the folder that were asked for; "-m": the module
    that `flags` begin with."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # libraries have asked for it, in another environment
    if script == "-m":
        sys.argv, sys.path[0] = flags, folder
        runpy.run_module(flags[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [script, *flags], str(Path(script).parent)
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()
    become(**serve(socket.socket(fileno=int(sys.argv[1]))))
