"""Requests to the Hub: every request of `datasets` and `huggingface_hub` goes through `ask`.

By themselves these libraries retry for minutes in silence, take some failures for an answer (a
file that could not be requested "is not there"), and pass on whatever bytes arrive. So `ask` tries
a request three times, unless it uploads something, and an answer other than the one requested
counts as none. If all three fail it raises NoAnswer, which no library retries, and stores it as
`last_failure` in case one catches it. Longer waiting, and reporting it, are left to data/feed.py.

`find` is the first request for a dataset or a model, of the menu's probe and of the reader alike
(hub_refusal.py puts its answer into words for both), so that they never disagree.

The token is sent to the own host of the endpoint, and to no other. Never written to a log: the
token, and the presigned addresses that files are really read from.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal, NoReturn
from urllib.parse import quote, urlsplit

from configs.errors import SourceError
from configs.text import clip
from data.sources.compressed import register_zstd
from data.sources.hub_environment import (
    TOKENS,
    certificate_variable,
    check_environment,
    check_token,
    prepare_environment,
    proxy_variable,
    token_in_use,
    variable_at_fault,
    without_wrong_variables,
)

RETRY_DELAYS = (0.2, 2.0)  # seconds
# Bytes; smaller bodies are read here even if the library streams them, to retry broken ones.
SMALL_BODY = 2**24
Kind = Literal["dataset", "model"]
UPLOAD_TIMEOUT = 100  # seconds that the Hub may take to store a large file or to make a commit
WEB_PAGE = "a web page in place of data"  # from a proxy, a login or maintenance
NOT_THE_HUBS = "an answer that is not the Hub's"
retries = ContextVar("retries", default=True)  # whether `ask` repeats a request that failed
_configuring = threading.RLock()


class _Failure(threading.local):
    error: "NoAnswer | None" = None


# Per thread. fsspec's isfile swallows every error, and the error that follows names no reason.
last_failure = _Failure()


class NoAnswer(Exception):
    """No usable answer now. Not an OSError, which HfFileSystem.isfile takes for "no such file"."""


def configure_library() -> None:
    """Send all requests through `ask`; disable retries, output and torch in the library."""
    with suppress(SourceError):  # files on this disk need no client, and `find` says why there is none
        connect()
    with without_wrong_variables():
        import datasets
    from tqdm import tqdm

    from data.sources.as_utf8 import let_library_read_any_encoding
    from data.sources.local_files import bound_local_globs

    bound_local_globs()
    let_library_read_any_encoding()
    datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 1
    datasets.config.STREAMING_READ_RETRY_INTERVAL = datasets.config.STREAMING_OPEN_RETRY_INTERVAL = 0
    # True would send a request to S3 for each source, also for files on this disk.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    # Importing torch takes a second and 170 MB, to share a counter with workers that do not exist.
    datasets.config.TORCH_AVAILABLE = False
    register_zstd()
    # Created for good: the library creates and deletes it per source, and two at once conflict.
    tqdm.get_lock()
    datasets.disable_progress_bars()


def connect() -> Any:
    """Return the client of all requests, which are sent through `ask`.

    Imports `huggingface_hub`, in a fifth of a second, but not `datasets`. Raises SourceError if
    the environment allows no client.
    """
    with _configuring:  # sources are opened in parallel
        prepare_environment()
        with without_wrong_variables():
            from huggingface_hub import close_session, get_session

        for name in ("httpx", "httpx2"):  # they print presigned addresses at INFO
            logging.getLogger(name).setLevel(logging.WARNING)
        # No warning about a dataset without a card.
        logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)
        try:
            client = get_session()
        except Exception as error:  # of any kind: a path, an address, a package that is missing
            name = variable_at_fault(get_session)
            close_session()
            raise SourceError(f"{name} cannot be used ({first_line(error)}): correct or unset it") from error
        if not isinstance(client.send, partial):
            client.send = partial(ask, client.send)  # type: ignore[method-assign]
        return client


def find(kind: Kind, name: str, revision: str | None = None) -> dict[str, Any]:
    """Return what the Hub says of a dataset or a model at `revision` (default: the newest); of a
    model, with the sizes of its files.

    Raises SourceError for an environment that cannot be used, NoAnswer, and the library's errors.
    """
    client = connect()
    check_environment(name)
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    address = f"{constants.ENDPOINT}/api/{kind}s/{name}"
    at_revision = f"/revision/{quote(revision, safe='')}" if revision else ""
    sizes = "?blobs=true" if kind == "model" else ""  # a dataset may have thousands of files
    response = client.get(address + at_revision + sizes, headers=build_hf_headers())
    found = _json_object(response)
    if response.is_success and "sha" not in found:
        raise no_answer(str(response.url), f"{NOT_THE_HUBS} (HTTP status {response.status_code})")
    if not response.is_success:
        _refuse(response, found, name)
    if found.get("gated"):  # its description may be read by everyone, its files not
        access = client.get(f"{address}/auth-check", headers=build_hf_headers())
        if access.status_code in (401, 403):
            hf_raise_for_status(access)
    return found


def _json_object(response: Any) -> dict[str, Any]:
    """Return the object in an answer, or {}."""
    try:
        found = response.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _refuse(response: Any, found: dict[str, Any], name: str) -> NoReturn:
    """Raise the library's error for a refusal of the Hub that `refusal` knows, SourceError for another, and
    NoAnswer for one that is a proxy's or of no Hub at all, which holds neither JSON nor the Hub's headers."""
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.utils import hf_raise_for_status

    status, reason = response.status_code, response.headers.get("x-error-message") or found.get("error")
    if not (reason or "x-error-code" in response.headers):
        raise no_answer(str(response.url), f"{NOT_THE_HUBS} (HTTP status {status})")
    try:
        hf_raise_for_status(response)
    except HfHubHTTPError as error:
        if status == 404 and not isinstance(error, RevisionNotFoundError):
            raise RepositoryNotFoundError(str(error), response=response) from error
        if status in (401, 403, 404):
            raise
    raise SourceError(f"{name}: the Hub refuses it ({clip(without_secrets(str(reason)), 200)})")


def ask(send: Callable[..., Any], request: Any, **options: Any) -> Any:
    """Return the response of `send(request, **options)` of the httpx client. Raises NoAnswer."""
    from huggingface_hub import constants

    # Set for every request: the libraries make some with 100 s and some without a limit.
    limits = dict.fromkeys(("connect", "read", "write", "pool"), constants.HF_HUB_DOWNLOAD_TIMEOUT)
    request.extensions = {**request.extensions, "timeout": limits}
    if origin(str(request.url)) != origin(constants.ENDPOINT):  # where an answer's `Link: next` may lead
        request.headers.pop("authorization", None)
    if request.method == "PUT" or (request.method == "POST" and "/commit/" in request.url.path):
        # The library repeats what may be repeated of an upload, since it can rewind the file.
        limits["read"] = UPLOAD_TIMEOUT
        return send(request, **options)
    for delay in (*(RETRY_DELAYS if retries.get() else ()), None):
        try:
            response = send(request, **options)
            if not (problem := problem_with(response, request.headers.get("range", ""))):
                if int(response.headers.get("content-length", SMALL_BODY)) < SMALL_BODY:
                    response.read()
                return response
            response.close()
        except Exception as error:
            if cannot_be_sent(error):
                check_token()
            if not is_request_error(error):
                raise
            problem = str(error).rstrip(".") or type(error).__name__
        if delay is not None:
            time.sleep(delay)
    raise no_answer(str(request.url), str(problem))


def no_answer(url: str, problem: str) -> NoAnswer:
    """Return the NoAnswer to a request to `url`, with the variable that may be the cause of `problem`."""
    if "CERTIFICATE_VERIFY_FAILED" in problem:
        problem = f"its certificate is not trusted; name the file of those to trust in {certificate_variable()}"
    elif proxy := proxy_variable(url):
        problem = f"{problem}, through the proxy in {proxy}"
    elif problem.startswith((WEB_PAGE, NOT_THE_HUBS)) and os.environ.get("HF_ENDPOINT"):
        problem = f"{problem}, at the address in HF_ENDPOINT"
    last_failure.error = NoAnswer(f"{urlsplit(url).hostname}: {problem}")
    return last_failure.error


def origin(address: str) -> tuple[str, str | None, int | None]:
    """Return the scheme, host and port of an address."""
    parts = urlsplit(address)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def problem_with(response: Any, asked_range: str) -> str | None:
    """Return why the response is unusable by its head, or None.

    The client itself checks that the body is as long as promised.
    """
    status, headers = response.status_code, response.headers
    page = headers.get("content-type", "").startswith("text/html")
    if status in (407, 408, 429) or status >= 500:
        return f"HTTP status {status}"
    if status in (401, 403) and page and not {"x-error-code", "x-error-message"} & headers.keys():
        return f"{WEB_PAGE} (HTTP status {status})"  # from a proxy: the Hub would say what it refuses
    if status >= 300:
        return None  # a refusal or a redirection is an answer
    if page:
        return WEB_PAGE
    if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", asked_range):
        given = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("content-range", ""))
        if status != 206 or not given:
            return "a whole file in place of a part"
        first, last, total = map(int, given.groups())
        if (first, last) != (int(asked[1]), min(int(asked[2] or total), total - 1)):
            return "another part of the file than was asked for"
    return None


def cannot_be_sent(error: BaseException) -> bool:
    """Return whether a header is invalid, as one with such a token is; the message may contain it."""
    return isinstance(error, UnicodeEncodeError) or type(error).__name__ == "LocalProtocolError"


def without_secrets(text: str) -> str:
    """Return `text` without tokens, without the user of an address, and with addresses cut at "?".

    A presigned address holds its signature there.
    """
    text = re.sub(r"""(https?://[^\s?"'<>\\]+)\?[^\s"'<>\\]+""", r"\1?...", text)
    text = re.sub(r"""(\w://)[^\s/@"'<>]+@""", r"\1...@", text)  # of a proxy, with its password
    tokens = [os.environ.get(name, "").strip() for name in TOKENS]
    with suppress(SourceError):
        tokens.append(token_in_use()[1])
    for token in filter(None, tokens):
        text = text.replace(token, "(token)")
    return text


def first_line(error: BaseException) -> str:
    """Return the first line of a message, safe to show: it may come from a library or server."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return without_secrets("".join(character for character in line if character.isprintable()))


def causes(error: BaseException | None) -> list[BaseException]:
    """Return the error and all that it was raised from."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def status_of(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def is_request_error(error: BaseException) -> bool:
    """Return whether it is a RequestError: no connection, time-out, cut off.

    It is of httpx or httpx2, depending on the version of huggingface_hub.
    """
    kinds = type(error).__mro__
    return any(kind.__name__ == "RequestError" and kind.__module__.startswith("httpx") for kind in kinds)
