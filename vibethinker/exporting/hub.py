"""An export on the Hugging Face hub, uploaded by the hub's own client with the token that it finds.

Nothing is asked of the hub unless an upload was asked for; then the token is tried before any work.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vibethinker.errors import ConfigurationError, InfrastructureError

REPO = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_RENEW = "log in by `hf auth login`, or set HF_TOKEN to a token that may write (huggingface.co/settings/tokens)"


def check_push(repo: str) -> None:
    """Whether the hub takes this account's token.

    Raises:
        ConfigurationError: `repo` is no id of a repository, there is no token, or it is refused.
        InfrastructureError: the hub doesn't answer.
    """
    from huggingface_hub import HfApi, constants, get_token

    if not REPO.fullmatch(repo):
        raise ConfigurationError(f"--push takes a repository such as my-name/my-model, not {repo!r}.")
    if constants.HF_HUB_OFFLINE:
        raise ConfigurationError("HF_HUB_OFFLINE is set, so nothing can be pushed: unset it, or leave --push out.")
    if not get_token():
        raise ConfigurationError(f"There is no token to push to {repo} with: {_RENEW}.")
    with _sentences(repo):
        HfApi().whoami()


def push(folder: Path, repo: str, *, private: bool, message: str) -> str:
    """Upload an export to a repository, which is made if need be; returns the address of the commit.

    Args:
        private: of a repository that is made now.

    Raises:
        ConfigurationError: the hub refuses the account or the repository.
        InfrastructureError: the hub can't be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _sentences(repo):
        api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        commit = api.upload_folder(folder_path=folder, repo_id=repo, commit_message=message)
    return str(commit.commit_url)


@contextmanager
def _sentences(repo: str) -> Iterator[None]:
    """The hub's refusals as this project's."""
    from httpx import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except HFValidationError as error:
        raise ConfigurationError(f"--push {repo} is no repository's id ({_first(error)}).") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = error.server_message or f"status {status}"
        if status == 401:
            raise ConfigurationError(
                f"The hub refuses this account's token for {repo}, so it is expired or revoked: {_RENEW}."
            ) from None
        if status in (400, 403, 404):
            raise ConfigurationError(f"The hub doesn't take {repo} from this account ({said.rstrip('.')}).") from None
        raise InfrastructureError(f"The hub failed ({said.rstrip('.')}): try again later.") from error
    except ValueError as error:  # of the card's metadata
        raise ConfigurationError(f"The hub doesn't take the export ({' '.join(str(error).split())}).") from None
    except (HTTPError, OSError) as error:
        at = os.environ.get("HF_ENDPOINT", "the hub")
        reason = _first(error)
        raise InfrastructureError(f"{at} can't be reached for {repo} ({reason}): try again.") from error


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
