"""The environment variables that say how the Hub is reached: put in order before a library reads
them, or one message that names the variable to correct.

`huggingface_hub` and `datasets` read most of them once, when they are imported, and disagree about
some: both see what `prepare_environment` leaves. They end their own import at a value that they
cannot read, so they are imported `without_wrong_variables`. Imports neither library.
"""

import math
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

from configs.errors import SourceError

# Each stops every request to the Hub when it is true.
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
CACHES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE")
TIMEOUTS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
LONGEST_TIMEOUT = 86_400  # seconds, a day: not every number is one that the system can wait for
CACHE_BYTES = 2**18  # that the libraries may need in their caches: cards and file lists of datasets
MEMORY = "HF_DATASETS_IN_MEMORY_MAX_SIZE"  # bytes
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
WITHOUT_TOKEN = "HF_HUB_DISABLE_IMPLICIT_TOKEN"  # when it is true, none is sent
# Read by the HTTP client when it is made.
CONNECTION = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_DIR", "SSL_CERT_FILE", "SSLKEYLOGFILE")

_cache: tempfile.TemporaryDirectory | None = None  # deleted when this process ends
_wrong_are_there = threading.RLock()  # held while they are removed or looked for


def prepare_environment() -> None:
    """Set the variables that the libraries are about to read. Raises SourceError."""
    for name in ("HF_ENDPOINT", "HF_HOME", "HF_TOKEN_PATH", "XDG_CACHE_HOME", MEMORY, *CACHES, *TIMEOUTS):
        if not os.environ.get(name, "x").strip():  # the libraries take an empty one literally
            del os.environ[name]
    if "HF_ENDPOINT" in os.environ:  # `datasets` cuts len(HF_ENDPOINT) + 1 characters off addresses
        os.environ["HF_ENDPOINT"] = os.environ["HF_ENDPOINT"].strip().rstrip("/")
    # Otherwise a request of its own asks which program this is.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # another client, with rules of its own for proxies and retries
    for name in TIMEOUTS:
        if re.fullmatch(r"\s*\d+(\.\d*)?\s*", seconds := os.environ.get(name, ""), re.ASCII):
            os.environ[name] = str(math.ceil(min(float(seconds), LONGEST_TIMEOUT)))  # only whole numbers are read
    _prepare_cache()


def _prepare_cache() -> None:
    """Give the libraries a temporary folder where theirs cannot be written.

    They keep the card and the file list of each dataset there.
    """
    global _cache
    for name in CACHES:
        if name in os.environ and not _can_be_written(_path(os.environ[name])):
            del os.environ[name]
    if not _can_be_written(_home()):
        if os.path.exists(token := _home() / "token"):
            os.environ.setdefault("HF_TOKEN_PATH", str(token))
        try:
            _cache = tempfile.TemporaryDirectory(prefix="huggingface-")
        except OSError as error:
            raise SourceError(
                f"HF_HOME: neither {_home()} nor a temporary folder can be written ({error.strerror}); "
                "set HF_HOME to a folder for the cache of the Hub"
            ) from None
        os.environ["HF_HOME"] = _cache.name


def _home() -> Path:
    return _path(os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"))


def _path(given: str) -> Path:
    return Path(os.path.expandvars(os.path.expanduser(given)))


@cache
def _can_be_written(folder: Path) -> bool:
    """Return whether a file as large as those that the libraries keep there fits into `folder`, or where it is to be
    made. Trying it is the only way to know: permissions say nothing of a full disk, or of /proc."""
    if not folder.is_absolute():  # "~" of a user without a home
        return False
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(bytes(CACHE_BYTES))
            file.flush()
            os.fsync(file.fileno())  # some file systems refuse only then
    except OSError:
        return False
    return True


@contextmanager
def without_wrong_variables() -> Iterator[None]:
    """Remove the variables that a library cannot read for as long as it is imported."""
    with _wrong_are_there:
        removed = {name: os.environ.pop(name) for name in _wrong_variables()}
        try:
            yield
        finally:
            os.environ.update(removed)  # for `check_environment`, here and in the processes that this one starts


def _wrong_variables() -> dict[str, str]:
    """Return what to write into each variable that a library cannot read."""
    wrong = {}
    if "HF_ENDPOINT" in os.environ and not _is_endpoint(os.environ["HF_ENDPOINT"]):
        wrong["HF_ENDPOINT"] = "write an address such as https://huggingface.co"
    for name in TIMEOUTS:
        if not re.fullmatch(r"\d+", os.environ.get(name, "10"), re.ASCII):
            wrong[name] = "give a number of seconds"
    try:
        float(os.environ.get(MEMORY, "0"))
    except ValueError:
        wrong[MEMORY] = "give a number of bytes"
    return wrong


def _is_endpoint(address: str) -> bool:
    """Return whether requests can be sent to paths below `address`."""
    try:
        parts = urlsplit(address)
        whole = bool(parts.hostname) and parts.port != 0  # raises for a port that is no number, or too large
    except ValueError:
        return False
    return whole and parts.scheme in ("http", "https") and not re.search(r"[?#\s]", address)


def _is_true(name: str) -> bool:
    return os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")


def check_environment(dataset: str) -> None:
    """Raise SourceError if `dataset` cannot be asked for in this environment."""
    for name in OFFLINE:
        if _is_true(name):
            raise SourceError(f"{dataset} is on the Hugging Face Hub, but {name} is set; unset it")
    with _wrong_are_there:
        for name, advice in _wrong_variables().items():
            value = os.environ[name]
            shown = "an address with a password" if "@" in value else repr(value[:80])
            raise SourceError(f"{name} is {shown} in the environment: {advice}, or unset it")
    check_token()


def check_token() -> None:
    """Raise SourceError if the token in use cannot be sent."""
    where, token = token_in_use()
    if not (token.isascii() and token.isprintable()):
        raise SourceError(f"{where} holds characters that cannot be sent: set it again")


def _host(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:  # such as an open bracket
        return ""


def token_in_use() -> tuple[str, str]:
    """Return (where it is, the token that is sent to the Hub); ("", "") if there is none.

    As `huggingface_hub.get_token` does: from the environment, else from the file that
    `hf auth login` writes. Raises SourceError if that file cannot be read.
    """
    if _is_true(WITHOUT_TOKEN):
        return "", ""
    for name in TOKENS:
        if token := os.environ.get(name, "").strip():
            return name, token
    path = _path(os.environ.get("HF_TOKEN_PATH") or str(_home() / "token"))
    try:
        token = path.read_text().strip()
    except FileNotFoundError:
        return "", ""
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise SourceError(
            f"{path}, the token of the Hub, cannot be read ({reason}): log in again, or set HF_TOKEN"
        ) from None
    return str(path) if token else "", token


def how_to_send_a_token(otherwise: str = "set HF_TOKEN") -> str:
    """Return what to do about requests without a token: unset the variable that forbids one, or else `otherwise`."""
    return f"unset {WITHOUT_TOKEN}, with which no token is sent" if _is_true(WITHOUT_TOKEN) else otherwise


def proxy_variable(url: str) -> str:
    """Return the name of the variable whose proxy requests to `url` go through, or ""."""
    if proxy_bypass(_host(url)):
        return ""
    names = (f"{urlsplit(url).scheme}_proxy", "all_proxy")
    spellings = [spelling for name in names for spelling in (name, name.upper())]
    return next((name for name in spellings if os.environ.get(name)), "")


def certificate_variable() -> str:
    """Return the name of the variable that says which certificates are trusted."""
    return next((name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)), "SSL_CERT_FILE")


def variable_at_fault(connect: Callable[[], object]) -> str:
    """Return the name of the variable without which `connect` succeeds, or of all that it reads."""
    names = [name for name in os.environ if name.upper() in CONNECTION]
    for name in names:
        value = os.environ.pop(name)
        try:
            connect()
            return name
        except Exception:  # of any kind: the variable may be a path, an address, a list
            continue
        finally:
            os.environ[name] = value
    return " or ".join(names) or "the environment"
