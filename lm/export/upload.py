"""The upload of an export to the Hugging Face Hub: a private repository, one commit in it, and one in
a branch for each milestone.

With the token, endpoint, proxy and client of everything else that asks the Hub
(data/sources/hub_client.py). Never here: what is in the export, questions to the user.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from configs.errors import UserError
from data.sources.hub_client import NoAnswer, causes, connect, first_line, is_request_error, status_of
from data.sources.hub_environment import check_environment, how_to_send_a_token, token_in_use
from lm.export.model_card import NEW_CARD

# Files that the export of another run may have, and this one may lack: a chat template would make this model chat.
OF_SOME_EXPORTS = ["*.gguf", "Modelfile", "chat_template.jinja", "aux_heads*", NEW_CARD]


def account() -> str:
    """Return the name of the account that the token belongs to. Raises UserError if there is none."""
    connect()
    check_environment("the model's repository")
    where, token = token_in_use()
    if not token:
        advice = how_to_send_a_token("run `hf auth login` with a token that may write, or set HF_TOKEN")
        raise UserError(f"Nobody is logged in to the Hugging Face Hub: {advice}.")
    from huggingface_hub import HfApi

    try:
        with _explained("your account"):
            return HfApi().whoami()["name"]
    except _Refused:
        raise UserError(f"The Hub does not know the token in {where}: set or store a new one that may write.") from None


def check_name(repository: str) -> None:
    """Raise UserError if `repository` is not "account/name" as the Hub allows it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        valid = repository.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise UserError(
            f"{repository[:100]!r} is no name of a repository: write one such as my-model or account/my-model, with letters, "
            "digits, -, _ and . only."
        )


def upload(folder: Path, repository: str, milestones: Mapping[str, Path]) -> str:
    """Add the files of `folder` to the model `repository` in one commit, and return its address. Each
    of the `milestones`, by its name, becomes all that is in the branch of that name, in one commit.

    A repository that does not exist is created, private. Raises UserError; then there is no commit
    of what was being sent, unless only the Hub's answer to it was lost.
    """
    connect()
    from huggingface_hub import HfApi, constants

    # The other way to send large files has a network client of its own and makes several commits.
    constants.HF_HUB_DISABLE_XET = True
    api, (where, _) = HfApi(), token_in_use()
    try:
        with _explained(repository):
            address = api.create_repo(repository, private=True, exist_ok=True)
            api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                delete_patterns=OF_SOME_EXPORTS,
                ignore_patterns=[NEW_CARD],  # beside one that the user has edited
                commit_message="Upload the export of a run",
            )
        for name, milestone in milestones.items():
            with _explained(f"the branch {name} of {repository}"):
                # From the first commit, which is empty: not even for a moment does it have other weights.
                first = api.list_repo_commits(repository)[-1].commit_id
                api.create_branch(repository, branch=name, revision=first, exist_ok=True)
                api.upload_folder(
                    repo_id=repository,
                    folder_path=milestone,
                    revision=name,
                    delete_patterns="*",  # what an earlier run has left there
                    commit_message="Upload a milestone of a run",
                )
    except _Refused as refused:
        raise UserError(
            f"The token in {where} may not write to {repository} ({refused}): give it that right at "
            f"{constants.ENDPOINT}/settings/tokens, or choose another repository. {folder} is unchanged."
        ) from None
    return str(address)


class _Refused(Exception):
    """The Hub does not know the token, or it lacks a right; the message is the Hub's."""


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn the library's errors into _Refused, or into a UserError about `what`."""
    try:
        yield
    except Exception as error:
        chain = causes(error)
        statuses = {status for link in chain if (status := status_of(link))}
        if statuses & {401, 403, 404}:
            raise _Refused(first_line(error)) from error
        silent = next((link for link in chain if isinstance(link, NoAnswer) or is_request_error(link)), None)
        if silent or any(status >= 500 for status in statuses):
            raise UserError(
                f"The Hub does not answer about {what} ({first_line(silent or error)}): check the network, then choose p "
                "again. Large files that have arrived are not sent twice."
            ) from error
        # A ValueError is about the head of README.md, which the Hub checks first.
        if not statuses and not isinstance(error, ValueError):
            raise
        raise UserError(f"The Hub refuses {what}: {first_line(error)}") from error
