"""What the Hub refuses, and how to fix it, in the words that the menu and the reader share."""

import os
from pathlib import PurePath

from configs.hf_source import FORMATS
from data.sources.hub_client import Kind, causes, first_line, status_of
from data.sources.hub_environment import how_to_send_a_token, token_in_use


def refusal(error: BaseException, name: str, kind: Kind = "dataset") -> str | None:
    """Return what the Hub refuses and how to fix it, after the name of the dataset or model; None
    if `error` is no refusal."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    chain, line = causes(error), first_line(error)
    where, _ = token_in_use()
    if any(isinstance(link, GatedRepoError) for link in chain) or "is a gated dataset" in line:
        page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if where:
            token = f"the account of the token in {where}"
        else:
            token = f"your account, and {how_to_send_a_token('set HF_TOKEN or run `hf auth login`')}"
        return f"is gated: accept its terms at {page} with {token}"
    if any(isinstance(link, RevisionNotFoundError) for link in chain):
        return "has no such revision on the Hub: correct it, or remove it for the newest"
    if where and any("Invalid credentials" in str(link) for link in chain):
        return f"is refused: the Hub does not know the token in {where}; set or store a new one"
    missing = any(isinstance(link, RepositoryNotFoundError) for link in chain) or "doesn't exist on the Hub" in line
    if missing or {401, 403} & {status_of(link) for link in chain}:
        access = f"or use a token that may read it (not that in {where})" if where else f"or {how_to_send_a_token()}"
        return f"does not exist on the Hub or is private: check the name, {access}{_if_here(name, kind)}"
    return None


def _if_here(name: str, kind: Kind) -> str:
    """Return what to write if `name` is meant as a folder or a file on this disk, or ""."""
    if kind == "model":  # lm/start_point.py says it
        return ""
    if os.path.isdir(name):
        return f'. For the folder of that name write "./{name}"'
    form = FORMATS.get(PurePath(name).suffix)
    return f'. For a file write "dataset": "{form}", "data_files": "{name}"' if form else ""
