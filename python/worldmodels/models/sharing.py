"""Models in folders and on the Hugging Face Hub: ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

CONFIG = "config.json"  # settings of a run folder
CARD = "README.md"
LIBRARY = "worldmodels-rl"  # library_name on the Hub

_REPO_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_PICKLED = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".tar")
_SHOWN = 6  # files named in an error


class Shared:
    """Base of models that are saved to folders and shared on the Hugging Face Hub.

    The files are safetensors with their configuration, in the layout of a run folder: ``vae/vae.safetensors``,
    ``rnn/rnn.safetensors``, ``rnn/initial.safetensors`` and ``evolve/controller.safetensors``. Every class reads its
    own files of a folder, so one repository may hold all of them. The methods have the names and arguments of
    huggingface_hub's ``ModelHubMixin``. Local folders need no huggingface_hub.
    """

    _FILES: ClassVar[tuple[str, ...]]

    def _check_savable(self) -> None:
        """Check that the files of :meth:`_save` can be written and loaded again; ValueError or TypeError otherwise."""
        raise NotImplementedError

    def _save(self, folder: Path) -> None:
        raise NotImplementedError

    @classmethod
    def _load(cls, folder: Path) -> Self:
        raise NotImplementedError

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the weights and their configuration to a folder.

        Args:
            save_directory: Folder; created if necessary. Other files in it are kept.

        Raises:
            FileExistsError: The folder is a run folder.
            OSError: A file cannot be written.
            ValueError: A weight or an initial state is not finite, or a shape is wrong; nothing is written.
        """
        folder = Path(save_directory)
        if (folder / CONFIG).exists():
            raise FileExistsError(
                f"save_directory: expected a folder that is not a run folder, got {folder} with {CONFIG}"
            )
        self._check_savable()
        self._save(folder)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> Self:
        """Load from a folder or from the Hugging Face Hub.

        Only safetensors files are downloaded and read; nothing is unpickled.

        Args:
            pretrained_model_name_or_path: Folder written by :meth:`save_pretrained`, run folder, or id of a repository
                (``"user/name"``).
            revision: Branch, tag or commit of the repository.
            token: Access token of the Hub; None for the stored one.
            cache_dir: Folder of downloaded files; None for that of huggingface_hub.
            local_files_only: Whether to read only files that are in the cache.
            force_download: Whether to download files that are in the cache.

        Raises:
            FileNotFoundError: There is no such folder, or a file is missing.
            ModuleNotFoundError: A repository needs the extra ``hub``, which is not installed.
            OSError: The Hub refused the request, or does not answer.
            ValueError: A file is damaged or holds another model.
        """
        source = str(pretrained_model_name_or_path)
        if Path(source).is_dir():
            folder = Path(source)
        elif isinstance(pretrained_model_name_or_path, Path) or not _REPO_ID.fullmatch(source):
            raise FileNotFoundError(f"pretrained_model_name_or_path: no such folder: {source}")
        else:
            options = {
                "revision": revision,
                "token": token,
                "cache_dir": cache_dir,
                "local_files_only": local_files_only,
                "force_download": force_download,
            }
            folder = download(source, cls._FILES, **options)
        missing = [file for file in cls._FILES if not (folder / file).is_file()]
        if missing:
            present = sorted(path.relative_to(folder).as_posix() for path in folder.glob("**/*") if path.is_file())
            if not Path(source).is_dir() and not local_files_only:
                present = list_files(source, revision=revision, token=token)
            raise FileNotFoundError(
                f"{source}: expected {', '.join(missing)} for {cls.__name__}, got {_named(present)}"
            )
        return cls._load(folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: str | None = None,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the weights, their configuration and a model card to the Hugging Face Hub.

        Args:
            repo_id: Repository (``"user/name"``); created if necessary.
            card: Text of the model card, README.md; None for a short one.
            commit_message: Message of the commit.
            private: Whether a new repository is private; None for the default of the account.
            token: Access token of the Hub; None for the stored one.
            branch: Branch of the commit; None for the main branch.
            create_pr: Whether to open a pull request instead of committing.

        Returns:
            Address of the commit.

        Raises:
            ModuleNotFoundError: The extra ``hub`` is not installed.
            OSError: The Hub refused the request, or does not answer.
            ValueError: ``repo_id`` is not a valid id, or the model cannot be saved, see :meth:`save_pretrained`.
        """
        import_hub("push_to_hub")
        self._check_savable()
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self._save(folder)
            text = short_card(repo_id, type(self).__name__) if card is None else card
            (folder / CARD).write_text(text, encoding="utf-8")
            message = commit_message or f"{type(self).__name__} of {LIBRARY}"
            return upload(
                folder, repo_id, message=message, private=private, token=token, branch=branch, create_pr=create_pr
            )


def import_hub(name: str) -> Any:
    """Import huggingface_hub.

    Args:
        name: What needs it, for the error.

    Raises:
        ModuleNotFoundError: It is not installed; the message names the extra that installs it.
    """
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name}: no module named 'huggingface_hub'; `pip install 'worldmodels-rl[hub]'` installs it",
            name="huggingface_hub",
        ) from error
    return huggingface_hub


def download(repo_id: str, files: Sequence[str], **options: Any) -> Path:
    """Download files of one commit of a repository; those that it lacks are left out.

    Args:
        repo_id: Repository.
        files: Paths in the repository.
        options: Arguments of huggingface_hub's ``snapshot_download``.

    Returns:
        Folder of the files.
    """
    hub = import_hub(f"{repo_id}: no such folder; a repository of the Hugging Face Hub needs the extra hub")
    with hub_errors(repo_id):
        return Path(hub.snapshot_download(repo_id, allow_patterns=list(files), library_name=LIBRARY, **options))


def list_files(repo_id: str, *, revision: str | None = None, token: str | bool | None = None) -> list[str]:
    """List the files of a repository."""
    hub = import_hub("list_files")
    with hub_errors(repo_id):
        return sorted(hub.HfApi(token=token, library_name=LIBRARY).list_repo_files(repo_id, revision=revision))


def upload(
    folder: Path,
    repo_id: str,
    *,
    message: str,
    files: Sequence[str] | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a folder to a repository in one commit; other files of the repository are kept.

    Args:
        folder: Folder.
        repo_id: Repository; created if necessary.
        message: Message of the commit.
        files: Paths in the folder; None for all files.
        private: See :meth:`Shared.push_to_hub`, as for the other arguments.
        token: Access token.
        branch: Branch.
        create_pr: Whether to open a pull request.

    Returns:
        Address of the commit.
    """
    hub = import_hub("push_to_hub")
    with hub_errors(repo_id):
        api = hub.HfApi(token=token, library_name=LIBRARY)
        created = api.create_repo(repo_id, private=private, exist_ok=True)
        if branch is not None:
            api.create_branch(created.repo_id, branch=branch, exist_ok=True)
        commit = api.upload_folder(
            repo_id=created.repo_id,
            folder_path=folder,
            commit_message=message,
            revision=branch,
            create_pr=create_pr,
            allow_patterns=None if files is None else list(files),
        )
        return str(commit.pr_url or commit.commit_url)


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Name the repository in errors of the cache, and convert those of the connection into a ConnectionError."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{repo_id}: no such folder, and no files from the Hugging Face Hub: {error}"
        ) from error
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise ConnectionError(f"{repo_id}: the Hugging Face Hub does not answer: {error}") from error


def _named(files: Sequence[str]) -> str:
    """Name the first of the files for an error."""
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    pickled = "; pickled files are not read" if any(file.endswith(_PICKLED) for file in files) else ""
    return f"{', '.join(files[:_SHOWN]) or 'no files'}{more}{pickled}"


def header(license_id: str, tags: Sequence[str] = ()) -> list[str]:
    """Return the first lines of a model card's metadata, in YAML, without the closing line.

    Args:
        license_id: Identifier of the license on the Hub.
        tags: Tags in addition to ``world-model`` and ``reinforcement-learning``.
    """
    every = dict.fromkeys(["world-model", "reinforcement-learning", *tags])
    return [
        "---",
        f"library_name: {LIBRARY}",
        f"license: {json.dumps(license_id)}",
        "pipeline_tag: reinforcement-learning",
        "tags:",
        *(f"- {tag}" for tag in every),
    ]


def short_card(repo_id: str, kind: str) -> str:
    """Return the model card of a model without a run."""
    return "\n".join(
        [
            *header("mit"),
            "---",
            "",
            f"# {repo_id}",
            "",
            f"`{kind}` of [{LIBRARY}](https://pypi.org/project/{LIBRARY}), *World Models* (Ha & Schmidhuber, 2018).",
            "The weights are safetensors. No scores were recorded with them.",
            "",
            *usage(repo_id, [kind]),
        ]
    )


def usage(repo_id: str, kinds: Sequence[str]) -> list[str]:
    """Return the lines of a model card that show how the models are loaded."""
    return [
        "## Use",
        "",
        "```bash",
        f'pip install "{LIBRARY}[hub]"',
        "```",
        "",
        "```python",
        "import worldmodels as wm",
        "",
        *(f'{_VARIABLES[kind]} = wm.{kind}.from_pretrained("{repo_id}")' for kind in kinds),
        "```",
        "",
    ]


_VARIABLES = {"ConvVAE": "vae", "MDNRNN": "mdnrnn", "Agent": "agent", "WorldModel": "world"}
