"""Requests to the Hub: every request of `datasets` and `huggingface_hub` goes through `ask`.

By themselves these libraries retry for minutes in silence, take some failures for an answer (a
file that could not be requested "is not there"), and pass on whatever bytes arrive. So `ask` tries
a request three times, and an answer other than the one requested counts as none. If all three fail
it raises NoAnswer, which no library retries, and stores it as `last_failure` in case one catches
it. Longer waiting, and reporting it, are left to data/feed.py.

Never written to a log: `HF_TOKEN`, and the presigned addresses that files are really read from.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

RETRY_DELAYS = (0.2, 2.0)  # seconds
# Bytes; smaller bodies are read here even if the library streams them, to retry broken ones.
SMALL_BODY = 2**24
BAD_TOKEN = "HF_TOKEN holds characters that cannot be sent: set it again"
_configuring = threading.Lock()


class _Failure(threading.local):
    error: "NoAnswer | None" = None


# Per thread. fsspec's isfile swallows every error, and the error that follows names no reason.
last_failure = _Failure()


class NoAnswer(Exception):
    """No usable answer now. Not an OSError, which HfFileSystem.isfile takes for "no such file"."""


def configure_library() -> None:
    """Send all requests through `ask`; disable retries, output and torch in the library."""
    import datasets
    from huggingface_hub import get_session
    from tqdm import tqdm

    client = get_session()
    with _configuring:  # sources are opened in parallel
        if not isinstance(client.send, partial):
            client.send = partial(ask, client.send)  # type: ignore[method-assign]
    datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 1
    datasets.config.STREAMING_READ_RETRY_INTERVAL = datasets.config.STREAMING_OPEN_RETRY_INTERVAL = 0
    # True would send a request to S3 for each source, also for files on this disk.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    # Importing torch takes a second and 170 MB, to share a counter with workers that do not exist.
    datasets.config.TORCH_AVAILABLE = False
    # Created for good: the library creates and deletes it per source, and two at once conflict.
    tqdm.get_lock()
    datasets.disable_progress_bars()
    for name in ("httpx", "httpx2"):  # they print presigned addresses at INFO
        logging.getLogger(name).setLevel(logging.WARNING)
    # No warning about a dataset without a card.
    logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)


def ask(send: Callable[..., Any], request: Any, **options: Any) -> Any:
    """Return the response of `send(request, **options)` of the httpx client. Raises NoAnswer."""
    from huggingface_hub import constants

    # Set for every request: the libraries make some with 100 s and some without a limit.
    limits = dict.fromkeys(("connect", "read", "write", "pool"), constants.HF_HUB_DOWNLOAD_TIMEOUT)
    request.extensions = {**request.extensions, "timeout": limits}
    for delay in (*RETRY_DELAYS, None):
        try:
            response = send(request, **options)
            if not (problem := problem_with(response, request.headers.get("range", ""))):
                if int(response.headers.get("content-length", SMALL_BODY)) < SMALL_BODY:
                    response.read()
                return response
            response.close()
        except Exception as error:
            if not is_request_error(error) or cannot_be_sent(error):
                raise
            problem = str(error).rstrip(".") or type(error).__name__
        if delay is not None:
            time.sleep(delay)
    last_failure.error = NoAnswer(f"{request.url.host}: {problem}")
    raise last_failure.error


def problem_with(response: Any, asked_range: str) -> str | None:
    """Return why the response is unusable by its head, or None.

    The client itself checks that the body is as long as promised.
    """
    status, headers = response.status_code, response.headers
    if status in (408, 429) or status >= 500:
        return f"HTTP status {status}"
    if status >= 300:
        return None  # a refusal or a redirection is an answer
    if headers.get("content-type", "").startswith("text/html"):
        return "a web page in place of data"  # from a proxy, a login or maintenance
    if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", asked_range):
        given = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("content-range", ""))
        if status != 206 or not given:
            return "a whole file in place of a part"
        first, last, total = map(int, given.groups())
        if (first, last) != (int(asked[1]), min(int(asked[2] or total), total - 1)):
            return "another part of the file than was asked for"
    return None


def cannot_be_sent(error: BaseException) -> bool:
    """Return whether the token makes an invalid header; the error's message may contain it."""
    return isinstance(error, UnicodeEncodeError) or type(error).__name__ == "LocalProtocolError"


def without_secrets(text: str) -> str:
    """Return `text` without HF_TOKEN and with addresses cut at "?".

    A presigned address holds its signature there.
    """
    token = os.environ.get("HF_TOKEN", "").strip()
    text = re.sub(r"""(https?://[^\s?"'<>\\]+)\?[^\s"'<>\\]+""", r"\1?...", text)
    return text.replace(token, "(HF_TOKEN)") if token else text


def is_request_error(error: BaseException) -> bool:
    """Return whether it is a RequestError: no connection, time-out, cut off.

    It is of httpx or httpx2, depending on the version of huggingface_hub.
    """
    kinds = type(error).__mro__
    return any(kind.__name__ == "RequestError" and kind.__module__.startswith("httpx") for kind in kinds)
