"""Two hosts: two network namespaces with a cable between them, a real torchrun with its rendezvous in each.

They live in namespaces of their own, made by `unshare`, which end with it: nothing on this machine is changed, and
nothing can stay behind. Skipped where the kernel, or a container, forbids them; `-s` shows what was measured.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.program import ENVIRONMENT, ROOT, Program, write_text

NAMESPACES = ("unshare", "--user", "--map-root-user", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child")
ADDRESSES = {"host-a": "10.99.0.1", "host-b": "10.99.0.2"}
BUDGET, STALL_SECONDS = 30_013, 6
pytestmark = pytest.mark.slow


# ---- inside the namespaces: python tests/test_two_hosts.py FOLDER FOLDER ---------------------------------------------


def on(host: tuple[str, ...], *command: str) -> None:
    subprocess.run([*host, *command], check=True)


def connect_hosts(folder: Path) -> list[tuple[str, ...]]:
    """The commands that run another on each host. The first host is where this process is."""
    (folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in ADDRESSES.items()))
    on((), "mount", "-t", "proc", "proc", "/proc")
    on((), "mount", "--bind", str(folder / "hosts"), "/etc/hosts")
    second = subprocess.Popen(["unshare", "--net", "--uts", "sleep", "infinity"])
    here, there = Path("/proc/self/ns"), Path(f"/proc/{second.pid}/ns")
    while (here / "uts").readlink() == (there / "uts").readlink():
        time.sleep(0.01)
    hosts = [(), ("nsenter", f"--net={there}/net", f"--uts={there}/uts")]
    on((), "ip", "link", "add", "lan", "type", "veth", "peer", "name", "lan", "netns", str(second.pid))
    for host, (name, address) in zip(hosts, ADDRESSES.items(), strict=True):
        on(host, sys.executable, "-c", f"import socket; socket.sethostname({name!r})")
        on(host, "ip", "link", "set", "lo", "up")
        on(host, "ip", "address", "add", f"{address}/24", "dev", "lan")
        on(host, "ip", "link", "set", "lan", "up")
    return hosts


def start(host: tuple[str, ...], folder: Path) -> subprocess.Popen:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    torchrun += ["--rdzv_backend=c10d", "--rdzv_endpoint=host-a:29500"]
    return subprocess.Popen(
        [*host, *torchrun, str(folder / "main.py")],
        cwd=folder / "elsewhere",
        env=os.environ | ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=(folder / "out").open("w"),
        stderr=(folder / "err").open("w"),
    )


def train_on_two_hosts(folders: list[Path], action: str) -> dict:
    """Exit codes, and what was measured."""
    processes = [start(*each) for each in zip(connect_hosts(folders[0]), folders, strict=True)]
    found = {}

    def wait_for(words: str, *paths: Path) -> None:
        while not all(path.exists() and words in path.read_text(errors="replace") for path in paths):
            assert any(process.poll() is None for process in processes), f"both have ended before {words!r}"
            time.sleep(0.01)

    if action != "train":
        wait_for("eval", folders[0] / "checkpoints/metrics.jsonl")
        began = time.monotonic()
        if action == "pull the cable":
            on((), "ip", "link", "set", "lan", "down")
            wait_for("has not answered", *(folder / "err" for folder in folders))
            on((), "ip", "link", "set", "lan", "up")  # or torchrun waits minutes for the other's
        else:
            processes[1].terminate()
            wait_for("Saved at", folders[0] / "out")
            processes[0].terminate()  # or torchrun waits five minutes for the other
        found["seconds"] = time.monotonic() - began
    found["codes"] = [process.wait() for process in processes]
    return found | {"seconds in all": time.monotonic() - began if action != "train" else 0}


if __name__ == "__main__":
    print(json.dumps(train_on_two_hosts([Path(folder) for folder in sys.argv[2:]], sys.argv[1])))


# ---- the tests -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def _namespaces() -> None:
    try:
        tried = subprocess.run(
            [*NAMESPACES, "ip", "link", "add", "lan", "type", "veth"], capture_output=True, text=True
        )
    except FileNotFoundError as error:
        pytest.skip(f"two hosts need network namespaces: {error.filename} is not installed")
    if tried.returncode:
        pytest.skip(f"two hosts need network namespaces, which are forbidden here: {tried.stderr.strip()}")


@pytest.fixture
def hosts(_namespaces, tmp_path):
    """The same program on two hosts; the second has no presets."""
    text = write_text(tmp_path / "text")
    programs = [Program(tmp_path / name, text, token_budget=BUDGET) for name in ("first", "second")]
    programs[0].add()
    for program in programs:
        program.change("lm/runtime/watch.py", "timedelta(minutes=2)", f"timedelta(seconds={STALL_SECONDS})")
    return programs


def train(hosts: list[Program], action: str = "train") -> tuple[dict, list[str], list[str]]:
    """What was measured; what each host has said on stdout and stderr."""
    folders = [str(program.folder) for program in hosts]
    process = subprocess.Popen(
        [*NAMESPACES, sys.executable, __file__, action, *folders],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        out, _ = process.communicate(timeout=600)
    finally:
        process.kill()
    said = [[(program.folder / name).read_text(errors="replace") for program in hosts] for name in ("out", "err")]
    assert process.returncode == 0, said
    print(action, out)
    return json.loads(out), *said


def test_two_hosts_train_one_model_and_one_that_is_told_to_stop_stops_both(hosts):
    """As when a scheduler takes back one machine of a job. Only the first has checkpoints, or any part of the run."""
    found, out, err = train(hosts, "stop the second")
    seen = hosts[0].state()["tokens_seen"]
    assert f"Saved at {seen:,} tokens" in out[0], err
    assert 0 < seen < BUDGET

    found, out, err = train(hosts)
    assert found["codes"] == [0, 0], err
    state = hosts[0].state()
    assert (state["tokens_seen"], state["world_size"], state["global_batch_rows"]) == (BUDGET, 2, 32)
    assert f"Done: {BUDGET:,} tokens" in out[0]
    assert out[1] == ""
    assert not hosts[1].written()


def test_a_cable_that_is_pulled_ends_the_job_on_both_hosts(hosts):
    found, _, err = train(hosts, "pull the cable")
    for said, silent in zip(err, (1, 0), strict=True):
        assert re.findall(r"Rank (\d) \(process \d+ on host-.\) has not answered", said) == [str(silent)]
    assert found["seconds"] < STALL_SECONDS + 60
    assert all(found["codes"])
    assert 0 < hosts[0].state()["tokens_seen"] < BUDGET
