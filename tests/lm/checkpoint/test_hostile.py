"""Checkpoints made to do harm: each is refused with one message, at once, whatever it says of itself."""

import errno
import hashlib
import io
import os
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from configs.errors import CheckpointError, Damaged
from lm.checkpoint import store
from lm.checkpoint.file import FORMAT_VERSION, write_file
from lm.checkpoint.reader import Checkpoint, check_opcodes
from lm.checkpoint.store import ALIAS, CURRENT, GENERATIONS, PREVIOUS
from lm.train.state import TrainState
from tests.cpu_clock import CpuClock
from tests.lm.checkpoint.small_checkpoint import make_state, save

SECONDS, MEMORY = 0.2, 200e6
STATE = {**make_state(1), "format_version": FORMAT_VERSION}


def written(state) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def vouched(archive: bytes) -> bytes:
    """The archive with the digest that this program would give it."""
    sha256 = hashlib.sha256(archive[:-2]).hexdigest().encode()
    return archive[:-2] + len(sha256).to_bytes(2, "little") + sha256


def zipped(parts: dict[str, bytes], compression=zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def parts_of(state) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(written(state))) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def with_pickle(pickled: bytes) -> bytes:
    return zipped({**parts_of(STATE), "data.pkl": pickled})


def strided(shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A weight of another shape than its storage has."""
    return written({**STATE, "model": {"weight": torch.ones(1).as_strided(shape, stride)}})


def changed(**changes) -> bytes:
    return written({**STATE, **changes})


TWO = {**STATE, "model": {"a": torch.zeros(4, dtype=torch.int32), "b": torch.zeros(4, dtype=torch.float16)}}


def two_types(pickled: bytes) -> bytes:
    """Let the second tensor, half as long, refer to the bytes of the first."""
    assert pickled.count(b"\x01\x00\x00\x001") == 1
    assert pickled.count(b"K\x04tq") == 2
    first, second, rest = pickled.replace(b"\x01\x00\x00\x001", b"\x01\x00\x00\x000").split(b"K\x04tq", 2)
    return first + b"K\x04tq" + second + b"K\x08tq" + rest


def many_lists(depth: int) -> list:
    """Of 100 ** depth values, in a pickle of a few bytes."""
    value: list = [1]
    for _ in range(depth):
        value = [value] * 100
    return value


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def many_dicts(number: int) -> bytes:
    """Of 64 bytes each, from one byte of pickle."""
    return b"\x80\x02(" + b"}" * number + b"l."


def large_directory() -> bytes:
    return zipped({**parts_of(STATE), **{f"{number:05}": b"" for number in range(20_000)}})


def twice() -> bytes:
    """Two pickles of one name: readers differ in which of them they take."""
    file = io.BytesIO(with_pickle(parts_of(STATE)["data.pkl"]))
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data.pkl", parts_of({**STATE, "tokens_seen": 2})["data.pkl"])
    return file.getvalue()


def claims(offset: int, form: str, value: int) -> bytes:
    """A valid archive, but for a number in the directory's entry of the pickle."""
    archive = bytearray(zipped(parts_of(STATE)))
    struct.pack_into(form, archive, archive.index(b"PK\x01\x02") + offset, value)
    return bytes(archive)


ATTACKS = {
    "10^11 elements by strides": lambda: strided((10**11,), (0,)),
    "an overflow by strides": lambda: strided((2**20, 2**20, 2**20), (0, 0, 0)),
    "elements outside of the storage": lambda: with_pickle(
        parts_of(STATE)["data.pkl"].replace(b"K\x10K\x10\x86", b"K\x10K\x11\x86")
    ),
    "bytes of two types": lambda: with_pickle(two_types(parts_of(TWO)["data.pkl"])),
    "a deflated pickle of 500 MB": lambda: zipped({"data.pkl": b"\0" * 500_000_000}, zipfile.ZIP_DEFLATED),
    "a stored pickle of 5 MB": lambda: with_pickle(pickle.dumps({**STATE, "model": {"text": "x" * 5_000_000}}, 2)),
    "a size of 4 GB": lambda: claims(24, "<I", 2**32 - 2),
    "a place outside of the file": lambda: claims(42, "<I", 2**31),
    "tokens_seen of 10^400": lambda: changed(tokens_seen=10**400),
    "tokens_seen of 2^60": lambda: changed(tokens_seen=2**60),
    "tokens_seen below 0": lambda: changed(tokens_seen=-1),
    "no end of seconds": lambda: changed(seconds=float("inf")),
    "a name that is a list": lambda: changed(preset='{"name": ["x"]}'),
    "a name of 1 MB": lambda: changed(preset='{"name": "%s"}' % ("x" * 1_000_000)),
    "a preset that is a number": lambda: changed(preset="7"),
    "a preset nested too deeply": lambda: changed(preset="[" * 100_000),
    "facts that are numbers": lambda: changed(facts={"preset": 7}),
    "text that no file can hold": lambda: changed(facts={"preset": "\ud800"}),
    "10^30 values": lambda: changed(rng={"python": many_lists(15)}),
    "values nested 200 deep": lambda: changed(rng={"python": nested(200)}),
    "3 million dicts": lambda: with_pickle(many_dicts(3_000_000)),
    "a memo of 2^31 places": lambda: with_pickle(b"\x80\x02Nr" + struct.pack("<I", 2**31 - 1) + b"."),
    "a bytearray of 2^40": lambda: with_pickle(b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"."),
    "an integer of 3 MB": lambda: with_pickle(
        b"\x80\x02\x8b" + struct.pack("<I", 3_000_000) + b"\1" * 3_000_000 + b"."
    ),
    "an endless pickle": lambda: with_pickle(b"\x80\x02" + b"N0" * 2_000_000),
    "a set": lambda: changed(rng={"python": {1, 2}}),
    "a directory of 20,000 files": large_directory,
    "two pickles": twice,
    "no pickle": lambda: zipped({"data/0": b"1234"}),
    "nothing": lambda: zipped({}),
}


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """Whatever is imported at the first use is imported."""
    folder = tmp_path_factory.mktemp("warm")
    save(folder, make_state(1))
    store.load(folder)
    return store.inspect(folder)


def refused(folder: Path) -> tuple[str, float, float]:
    """What `load` says of the run in `folder`, after the menu has looked at it, and the CPU seconds and bytes that took."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
    before = peak()
    with CpuClock() as clock:
        assert store.inspect(folder) is None
        assert store.latest_exists(folder)
        with pytest.raises(CheckpointError) as raised:
            store.load(folder)
    return str(raised.value), clock.seconds, peak() - before


def peak() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))


@pytest.mark.slow
def test_each_is_refused_at_once_and_takes_no_memory(tmp_path, warm):
    slowest = largest = 0.0
    for name, attack in ATTACKS.items():
        (tmp_path / CURRENT).write_bytes(vouched(attack()))
        message, seconds, memory = min((refused(tmp_path) for _ in range(3)), key=lambda result: result[1])
        assert f"{CURRENT}: " in message, name
        assert len(message) < 1000, name
        assert memory < MEMORY, name
        assert seconds < 2 * SECONDS, f"{name}: {seconds:.2f} s for the menu and for a start"
        slowest, largest = max(slowest, seconds / 2), max(largest, memory)
    print(f"{len(ATTACKS)} hostile checkpoints: {slowest:.2f} s and {largest / 1e6:.0f} MB at most")


def test_a_pickle_has_no_opcodes_but_those_of_plain_values():
    pickled = {"BUILD": b"}}b", "EMPTY_SET": b"\x8f", "NEWOBJ": b"N)\x81", "INST": b"(ios\nsystem\n", "DUP": b"N2"}
    for name, opcodes in pickled.items():
        with pytest.raises(Damaged, match="more than numbers, text and tensors"):
            check_opcodes(b"\x80\x02" + opcodes + b".")
        assert name in {opcode.name for opcode, _, _ in pickletools.genops(b"\x80\x02" + opcodes + b".")}
    assert check_opcodes(pickle.dumps([1, 2.5, "a", None, True, {"b": (1,)}], 2)) > 10


def test_what_is_no_file_is_never_opened(tmp_path, warm):
    def folder(path):
        path.mkdir()

    kinds = {
        "a pipe": os.mkfifo,
        "a folder": folder,
        "a device": lambda path: path.symlink_to("/dev/zero"),
        "a link to itself": lambda path: path.symlink_to(path),
    }
    for name, make in kinds.items():
        run = tmp_path / name
        run.mkdir()
        make(run / CURRENT)
        message, seconds, _ = refused(run)
        assert "No checkpoint in" in message, name
        assert seconds < 2 * SECONDS, name
        # Beside a checkpoint it is kept under another name, and saves go on.
        for generation in (*GENERATIONS[1:], ALIAS):
            make(run / generation)
        os.rename(run / CURRENT, run / "strange")
        write_file(run / CURRENT, STATE)
        state, notice = store.load(run)
        assert (state["tokens_seen"], store.inspect(run).tokens_seen) == (1, 1)
        assert f"{PREVIOUS}.bad-1" in notice, name
        save(run, make_state(2))
        assert store.load(run)[0]["tokens_seen"] == 2
        assert (run / PREVIOUS).is_file()


def test_tensors_larger_than_memory_are_refused_before_they_are_read(tmp_path, monkeypatch):
    save(tmp_path, make_state(1))
    monkeypatch.setattr("lm.checkpoint.file.available_memory", lambda: 1000)
    with pytest.raises(CheckpointError, match=r"holds 0.0 GB of tensors, and 0.0 GB of memory are free"):
        store.load(tmp_path)
    assert not list(tmp_path.glob("*.bad-*"))


def test_a_file_that_may_not_be_read_is_said_to_be_one(tmp_path, monkeypatch):
    save(tmp_path, make_state(1))

    def forbidden(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", forbidden)
    assert store.inspect(tmp_path) is None
    with pytest.raises(CheckpointError, match="may not be read"):
        store.load(tmp_path)


def test_tensors_are_what_torch_reads(tmp_path):
    shared = torch.arange(12.0).reshape(3, 4)
    types = [
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
    ]
    tensors = {
        "tied": shared,
        "tied too": shared,
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 5),
        **{str(kind): torch.arange(5).to(kind) for kind in types},
    }
    write_file(tmp_path / "file", {"model": tensors, "more": [None, True, 1.5, -7, "é", (1, 2)]})
    with Checkpoint(tmp_path / "file") as checkpoint:
        ours = checkpoint.tensors()
    theirs = torch.load(tmp_path / "file", weights_only=True)
    assert ours["more"] == theirs["more"]
    assert ours["model"].keys() == theirs["model"].keys()
    for name, tensor in theirs["model"].items():
        assert ours["model"][name].dtype == tensor.dtype
        assert torch.equal(ours["model"][name], tensor)
    assert ours["model"]["tied"].data_ptr() == ours["model"]["tied too"].data_ptr()


def test_progress_that_no_run_has_is_refused():
    begun = TrainState.new(2, 2, 8)
    good = begun.to_checkpoint(32) | {"events": {}}
    assert TrainState.from_checkpoint(good, 2, 2) == begun
    position = good["stream_position"]
    adaptive = position["adaptive"]
    bad = [
        {"global_batch_rows": 0},
        {"stream_position": {}},
        {"stream_position": []},
        {"events": {"evaluated": "now"}},
        *({"stream_position": {**position, **changes}} for changes in (
            {"windows_begun": [5]}, {"windows_begun": [0, 9, 3]}, {"windows_begun": []}, {"windows_begun": ["0"]},
            {"source_tokens": [1]}, {"source_tokens": [1, "2"]}, {"text_digest": 7}, {"weight_changes": [[1]]},
            {"weight_changes": [(1, [1.0])]}, {"adaptive": {**adaptive, "factors": [float("nan")] * 2}},
            {"adaptive": {**adaptive, "bits_per_byte": {"a": 1}}}, {"adaptive": None},
        )),
    ]  # fmt: skip
    for changes in bad:
        with pytest.raises(CheckpointError, match="does not say how far its run was"):
            TrainState.from_checkpoint(good | changes, 2, 2)
