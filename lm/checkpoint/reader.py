"""The structure of a checkpoint that is not trusted: its state and the shapes of its tensors, before any is read.

A file is a zip archive, as `torch.save` writes it: `data.pkl`, a pickle in which tensors refer to
storages, and a file `data/<key>` for the bytes of each storage. `Checkpoint` reads the directory
of the archive and the pickle, both of bounded size, and runs nothing that they name. In place of
tensors its `state` has `TensorOutline`s, which are checked against the storages in the archive, so
that what a file says of itself never costs more memory than the file is long. `tensors` then reads
them. torch is imported only there, since the menu lists runs before anything heavy is loaded.
"""

import math
import os
import pickle
import pickletools
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO, FileIO
from pathlib import Path
from typing import Any

from configs.errors import Damaged

# A model of 128 layers has 3,100 tensors, 36 opcodes and 140 bytes of pickle each. Weights of sources
# that were changed take an opcode each, at most configs/schema.py: MOST_WEIGHTS.
MOST_OPCODES = 300_000
LARGEST_PICKLE = 4 * 2**20  # bytes
LARGEST_DIRECTORY = 2**19  # bytes, of the archive
MOST_DIMENSIONS, SMALL = 8, 2**20  # of a tensor
DEEPEST = 20  # containers inside of containers
# What a pickle of plain values and tensors is made of. Integers have at most 64 bits.
OPCODES = {
    "PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE",
    "TUPLE1", "TUPLE2", "TUPLE3", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "REDUCE", "BINPERSID",
}  # fmt: skip
DTYPES = {  # by torch's name of a storage: torch's name of the type, bytes of an element
    "FloatStorage": ("float32", 4), "BFloat16Storage": ("bfloat16", 2), "HalfStorage": ("float16", 2),
    "DoubleStorage": ("float64", 8), "LongStorage": ("int64", 8), "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2), "CharStorage": ("int8", 1), "ByteStorage": ("uint8", 1),
}  # fmt: skip


_END = object()


@dataclass(frozen=True)
class Storage:
    dtype: str
    item_bytes: int
    key: str  # its name in the archive
    num_elements: int


@dataclass(frozen=True)
class TensorOutline:
    """A tensor that was not read: `offset` and `stride` count elements of the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.storage.item_bytes


class Checkpoint:
    """An open checkpoint file: `with Checkpoint(path) as checkpoint:`.

    `state`: its content, with outlines of tensors; `num_bytes`: of all tensors. Raises
    FileNotFoundError, PermissionError, or Damaged for everything that is not as `torch.save`
    writes it.
    """

    def __init__(self, path: Path):
        self._file = _DirectoryReader(open_file(path))
        try:
            self._read()
        except (FileNotFoundError, PermissionError, Damaged):
            self._file.close()
            raise
        except Exception as error:  # damaged bytes can raise anything in zipfile and pickle
            self._file.close()
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise Damaged(f"damaged ({reason})") from error

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _read(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        self._archive = zipfile.ZipFile(self._file)
        entries = self._archive.infolist()
        self._file.bounded = False
        self._entries = {entry.filename: entry for entry in entries}
        self._prefix = entries[0].filename.partition("/")[0] + "/" if entries else ""
        if len(self._entries) < len(entries) or sum(entry.file_size for entry in entries) > size:
            raise Damaged("damaged: it says that it holds more than it can")
        if any(
            entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size for entry in entries
        ):
            raise Damaged("damaged: its parts are compressed")
        record = self._entries[self._prefix + "data.pkl"]
        if record.file_size > LARGEST_PICKLE:
            raise Damaged(f"damaged: its pickle has {record.file_size:,} bytes")
        pickled = self._archive.read(record)
        num_opcodes = check_opcodes(pickled)
        self.state = _OutlineUnpickler(BytesIO(pickled)).load()
        outlines = list(_outlines(self.state, num_opcodes))
        for outline in outlines:
            self._check(outline)
        storages = {outline.storage for outline in outlines}
        if len({storage.key for storage in storages}) < len(storages):
            raise Damaged("damaged: its tensors differ about the type of their bytes")
        self.num_bytes = sum(outline.num_bytes for outline in outlines)
        if self.num_bytes > 2 * size:  # a tied output layer is one tensor under two names
            raise Damaged("damaged: its tensors are larger than the file")

    def _check(self, outline: TensorOutline) -> None:
        storage, entry = outline.storage, self._entries.get(self._name(outline.storage))
        if entry is None or entry.file_size != storage.num_elements * storage.item_bytes:
            raise Damaged("damaged: a tensor has no bytes, or not as many as it needs")
        last = outline.offset + sum(step * (size - 1) for size, step in zip(outline.shape, outline.stride, strict=True))
        if math.prod(outline.shape) and last >= storage.num_elements:
            raise Damaged("damaged: a tensor is not within its bytes")

    def _name(self, storage: Storage) -> str:
        return f"{self._prefix}data/{storage.key}"

    def tensors(self) -> Any:
        """Return `state` with tensors in place of outlines; those that share a storage share memory.

        Raises OSError, or zipfile's errors for damaged bytes.
        """
        return self._filled(self.state, {})

    def _filled(self, value: Any, storages: dict[str, Any]) -> Any:
        if isinstance(value, TensorOutline):
            if value.storage.key not in storages:
                storages[value.storage.key] = self._stored(value.storage)
            return storages[value.storage.key].as_strided(value.shape, value.stride, value.offset)
        if isinstance(value, dict):
            return {key: self._filled(item, storages) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._filled(item, storages) for item in value)
        return value

    def _stored(self, storage: Storage) -> Any:
        import torch

        content = torch.empty(storage.num_elements * storage.item_bytes, dtype=torch.uint8)
        with self._archive.open(self._name(storage)) as file:
            file.readinto(content.numpy())  # type: ignore[attr-defined]
        return content.view(getattr(torch, storage.dtype))


def open_file(path: Path) -> int:
    """Open a file for reading and return its descriptor; raises Damaged for a pipe, a device or a
    folder, which may block for ever or have no end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise Damaged("not a regular file")
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


class _DirectoryReader(FileIO):
    """A file whose reads are bounded while zipfile reads the archive's directory in one of them."""

    bounded = True

    def read(self, size: int | None = -1, /) -> bytes:
        if self.bounded:
            left = os.fstat(self.fileno()).st_size - self.tell()
            wanted = left if size is None or size < 0 else min(size, left)
            if wanted > LARGEST_DIRECTORY:
                raise Damaged(f"damaged: its directory has {wanted:,} bytes")
        return super().read(size)


def check_opcodes(pickled: bytes) -> int:
    """Return the number of opcodes; raises Damaged unless they are OPCODES, and few enough to need
    little memory."""
    number = 0
    for number, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if opcode.name not in OPCODES or number >= MOST_OPCODES:
            raise Damaged("damaged: it holds more than numbers, text and tensors")
        if isinstance(argument, int) and (
            not -(2**63) <= argument < 2**63 or (opcode.name == "LONG_BINPUT" and argument >= MOST_OPCODES)
        ):
            raise Damaged("damaged: it holds a number of more than 64 bits")
        if isinstance(argument, str):
            argument.encode()  # raises UnicodeEncodeError for what no file can hold
    return number + 1


class _OutlineUnpickler(pickle.Unpickler):
    """An unpickler that knows tensors, as outlines, and no other class or function."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor_outline
        if (module, name) == ("collections", "OrderedDict"):  # a tensor's hooks, of which there are none
            return lambda: None
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        raise Damaged(f"damaged: it names {module}.{name}"[:200])

    def persistent_load(self, pid: Any) -> Storage:
        kind, (dtype, item_bytes), key, _, num_elements = pid
        if kind != "storage" or type(key) is not str or type(num_elements) is not int:
            raise Damaged("damaged: it refers to no tensor")
        return Storage(dtype, item_bytes, key, num_elements)


def _tensor_outline(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorOutline:
    """Return the outline of what torch._utils._rebuild_tensor_v2 would make of these arguments."""
    if type(storage) is not Storage or type(shape) is not tuple or type(stride) is not tuple:
        raise Damaged("damaged: a tensor has no shape")
    if any(type(number) is not int or number < 0 for number in (offset, *shape, *stride)):
        raise Damaged("damaged: a tensor's shape has other than numbers")
    # Of those that torch cannot compute with, some have no element.
    if len(shape) > MOST_DIMENSIONS or max((*shape, *stride), default=0) > max(storage.num_elements, SMALL):
        raise Damaged("damaged: a tensor has a shape that its bytes cannot have")
    return TensorOutline(storage, offset, shape, stride)


def _outlines(state: Any, num_opcodes: int) -> Iterator[TensorOutline]:
    """Yield the outlines in `state`; raises Damaged for containers that hold themselves, are shared
    so often that visiting them would take for ever, or are nested too deeply."""
    stack, num_visited = [iter([state])], 0
    while stack:
        value = next(stack[-1], _END)
        num_visited += 1
        if len(stack) > DEEPEST or num_visited > 2 * num_opcodes:  # each is visited, and left
            raise Damaged("damaged: its values are nested too deeply")
        if value is _END:
            stack.pop()
        elif isinstance(value, TensorOutline):
            yield value
        elif isinstance(value, dict):
            if not all(type(key) in (str, int) for key in value):
                raise Damaged("damaged: a key is neither text nor a number")
            stack.append(iter(value.values()))
        elif isinstance(value, list | tuple):
            stack.append(iter(value))
        elif type(value) not in (type(None), bool, int, float, str):
            raise Damaged(f"damaged: it holds a {type(value).__name__}")
