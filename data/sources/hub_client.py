"""How the Hub is asked: every request of `datasets` and `huggingface_hub` goes through `ask`.

Left to themselves these libraries retry for minutes without a word, take some failures for an answer (a file that could
not be asked for "is not there"), and hand on whatever bytes arrive. So a request is tried three times here, and an
answer that is not what was asked for counts as none. What then still fails is raised as NoAnswer, which no library
retries, and noted as the `last_failure` for where one catches it; to wait longer, and say so, is for data/feed.py.

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
SMALL_BODY = 2**24  # bytes; read here even if the library would read it bit by bit, so that a broken one is asked again
BAD_TOKEN = "HF_TOKEN holds characters that cannot be sent: set it anew"
_configuring = threading.Lock()


class _Failure(threading.local):
    error: "NoAnswer | None" = None


last_failure = _Failure()  # of this thread. fsspec's isfile swallows every error, and what comes of it names no reason


class NoAnswer(Exception):
    """No usable answer now. Not an OSError: HfFileSystem.isfile takes one for "there is no such file"."""


def configure_library() -> None:
    """`ask` for every request, no retries of the library's own, nothing printed, no torch."""
    import datasets
    from huggingface_hub import get_session
    from tqdm import tqdm

    client = get_session()
    with _configuring:  # sources are opened side by side
        if not isinstance(client.send, partial):
            client.send = partial(ask, client.send)  # type: ignore[method-assign]
    datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 1
    datasets.config.STREAMING_READ_RETRY_INTERVAL = datasets.config.STREAMING_OPEN_RETRY_INTERVAL = 0
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # a request to S3 for each source, also for files on this disk
    datasets.config.TORCH_AVAILABLE = False  # a second and 170 MB, to share a counter with workers that there are not
    tqdm.get_lock()  # there from now on: the library makes and deletes it for each source, and two do not agree on it
    datasets.disable_progress_bars()
    for name in ("httpx", "httpx2"):  # at INFO they print presigned addresses
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)  # a dataset without a card is no news


def ask(send: Callable[..., Any], request: Any, **options: Any) -> Any:
    """The response to `request` by `send(request, **options)` of the library's httpx client. Raises NoAnswer."""
    from huggingface_hub import constants

    # For every request: some are made with 100 s, some without any limit.
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
    """What makes the answer none, by its head; that the body is as long as promised the client sees itself."""
    status, headers = response.status_code, response.headers
    if status in (408, 429) or status >= 500:
        return f"HTTP status {status}"
    if status >= 300:
        return None  # a refusal or a redirection: an answer
    if headers.get("content-type", "").startswith("text/html"):
        return "a web page in place of data"  # of a proxy or a login, or "we will be back soon"
    if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", asked_range):
        given = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("content-range", ""))
        if status != 206 or not given:
            return "a whole file in place of a part"
        first, last, total = map(int, given.groups())
        if (first, last) != (int(asked[1]), min(int(asked[2] or total), total - 1)):
            return "another part of the file than was asked for"
    return None


def cannot_be_sent(error: BaseException) -> bool:
    """Whether a header is none, and that is the one with the token; the error's words may hold it."""
    return isinstance(error, UnicodeEncodeError) or type(error).__name__ == "LocalProtocolError"


def without_secrets(text: str) -> str:
    """`text` as it may be shown: addresses without what follows "?", where a presigned one holds its signature; no
    HF_TOKEN."""
    token = os.environ.get("HF_TOKEN", "").strip()
    text = re.sub(r"""(https?://[^\s?"'<>\\]+)\?[^\s"'<>\\]+""", r"\1?...", text)
    return text.replace(token, "(HF_TOKEN)") if token else text


def is_request_error(error: BaseException) -> bool:
    """Of httpx or httpx2, whichever this version of huggingface_hub was made for: no connection, time-out, cut off."""
    kinds = type(error).__mro__
    return any(kind.__name__ == "RequestError" and kind.__module__.startswith("httpx") for kind in kinds)
