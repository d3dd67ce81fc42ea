"""An export in a repository of the Hugging Face Hub."""

import os
import re
from pathlib import Path
from typing import Any

from pipeline.common.errors import BadInput, WorkFailed, one_line

NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def open_hub(name: str) -> Any:
    """The Hub's client, with the token of the environment (HF_TOKEN) or of `hf auth login`; nothing is sent yet.

    Raises:
        BadInput: `name` is no OWNER/NAME, or there is no token.
    """
    if not NAME.fullmatch(name):
        raise BadInput(f"--push {name}: wanted OWNER/NAME, a repository of the Hub")
    from huggingface_hub import HfApi, get_token

    token = os.environ.get("HF_TOKEN") or get_token()
    if not token:
        raise BadInput(f"--push {name}: wanted a token of the Hub that may write, in HF_TOKEN; there is none")
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)


def push(hub: Any, folder: Path, name: str) -> str:
    """Upload `folder` to the repository `name`, which is made private unless it exists; returns its address.

    Raises:
        WorkFailed: the Hub refuses, or cannot be reached; `folder` is kept.
    """
    try:
        hub.create_repo(name, private=True, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Add an export of traflow-pipeline")
    except Exception as error:  # the client raises its own, those of its connections, and OSError
        cause = one_line(error).replace(hub.token, "...")[:200]
        raise WorkFailed(
            f"{folder} is written, but not uploaded to {name} ({cause}): hf upload {name} {folder} tries again"
        ) from error
    return f"{hub.endpoint}/{name}"
