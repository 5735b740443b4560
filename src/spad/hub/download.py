"""`spad download`: download a released model from the Hugging Face hub, convert and install it.

The hub's client gives address, size and hash of the file and manages the cache. The transfer itself
is our own code, because the client's does not resume the file, of several GB, in a new process.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    get_session,
    hf_hub_url,
    try_to_load_from_cache,
)

# The client's transport is httpx or httpx2, by its version; this is HTTPError of the one it uses.
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status
from tqdm import tqdm

from spad.files import (
    check_space,
    exclusive,
    file_hash,
    first_line,
    room_for,
    size_text,
    slug,
    whole_file,
    write_text,
)
from spad.hub.config import ConvertConfig, DownloadConfig
from spad.hub.registry import check_files, read_info
from spad.model.folders import installed_folder
from spad.model.released import RELEASED, ReleasedModel

log = logging.getLogger(__name__)

# A transfer is given up after so many tries in a row without a new byte.
_TRIES = 5
_PART = ".spad-part"
_LARGEST_TOKENIZER_FILE = 50_000_000
# Size of the model by that of the original, which has the UNet twice, raw and averaged.
_KEPT_SHARE = 0.56
_OTHER_DISKS = (
    "make room, or choose other disks: HF_HOME for the download, SPAD_HOME for the installed model"
)


class DownloadError(OSError):
    """Failure of network or hub; the message says what to do."""


class _WrongData(DownloadError):
    """The server sends something else than it announced."""


def find_installed(settings: DownloadConfig) -> Path | None:
    """Folder of the installed model, with its files checked, or None.

    Raises: ValueError: no model of this name is released, or the installed one is damaged.
    """
    folder = installed_folder() / _released(settings).name
    if not folder.exists():
        return None
    try:
        check_files(read_info(folder))
    except ValueError as error:
        raise ValueError(f"{error}: remove {folder}, then run the same command") from error
    return folder


def describe(settings: DownloadConfig) -> str:
    """Summary of what `install` would download, from where and to where; without network."""
    model = _released(settings)
    original = "kept" if settings.keep_original else "deleted after the conversion"
    tokenizer = f"{settings.clip}"
    if settings.clip is None:
        size = size_text(model.tokenizer_size_bytes)
        tokenizer = f"{constants.ENDPOINT}/{model.tokenizer_repository}, {size}"
    size = size_text(model.size_bytes)
    installed = size_text(_converted_bytes(settings, model.size_bytes))
    return "\n".join(
        (
            f"{model.name}: {model.description}",
            f"source     {constants.ENDPOINT}/{model.repository}, {model.file}, about {size}",
            f"tokenizer  {tokenizer}",
            f"cache      {constants.HF_HUB_CACHE}; the original is {original}",
            f"model      {installed_folder() / model.name}, about {installed}",
            f"license    unknown; {model.license}",
        )
    )


def ask_for(settings: DownloadConfig) -> str:
    """Question to the user before the download, without its question mark."""
    model = _released(settings)
    return f"download {size_text(model.size_bytes)} from {constants.ENDPOINT}/{model.repository}"


def install(settings: DownloadConfig) -> Path:
    """Download and convert the model and return its folder; resumes an interrupted download.

    A second process waits for the first and returns its result.

    Raises:
        ValueError: unknown model, no tokenizer in `settings.clip`, or an unexpected file.
        DownloadError: failure of network or hub; a partial download is kept for the next call,
            unless its hash is wrong.
        OSError: the disk has too little free space.
    """
    model = _released(settings)
    folder = installed_folder() / model.name
    with exclusive(folder.parent / f".{model.name}", wait=True):
        if find_installed(settings) is not None:
            return folder
        clip = settings.clip or _fetch_tokenizer(model)
        original, is_temporary = _fetch_original(settings, model, folder)
        log.info("converting")
        from spad.hub.convert import convert_checkpoint

        try:
            convert_checkpoint(
                ConvertConfig(
                    checkpoint=original,
                    output=folder,
                    clip=clip,
                    config=model.config,
                    weights=settings.weights,
                    dtype=settings.dtype,
                    name=model.name,
                )
            )
        except ValueError as error:
            raise ValueError(f"{error}; the original is kept in {original}") from error
        if is_temporary:
            original.unlink()
    return folder


def _released(settings: DownloadConfig) -> ReleasedModel:
    if settings.model not in RELEASED:
        raise ValueError(
            f"expected a released model among {', '.join(RELEASED)}, got {settings.model!r}"
        )
    model = RELEASED[settings.model]
    if settings.clip is not None:
        for name in model.tokenizer_files:
            if not (settings.clip / name).is_file():
                raise ValueError(
                    f"expected CLIP's tokenizer in {settings.clip}, which has no {name}"
                )
    return model


def _fetch_tokenizer(model: ReleasedModel) -> Path:
    """Folder with the tokenizer's files, all of one revision, in the hub's cache."""
    repository, revision = model.tokenizer_repository, "main"
    path = None
    for name in model.tokenizer_files:
        path = _cached(repository, name, revision)
        if path is None:
            remote = _find(repository, name, revision)
            if remote.size > _LARGEST_TOKENIZER_FILE:
                raise DownloadError(
                    f"expected {name} of {repository} of at most "
                    f"{size_text(_LARGEST_TOKENIZER_FILE)}, got {size_text(remote.size)}"
                )
            path = _keep(remote, _fetch(remote, is_shown=False))
        revision = path.parent.name
    assert path is not None
    return path.parent


def _fetch_original(
    settings: DownloadConfig, model: ReleasedModel, folder: Path
) -> tuple[Path, bool]:
    """The checkpoint, with its hash checked, and whether to delete it after use.

    A file that the hub's cache had before is the user's and is kept.
    """
    repository, file = model.repository, model.file
    cached = _cached(repository, file)
    if cached is not None:
        log.info("using the original in the hub's cache, which is kept: %s", cached)
        size = _converted_bytes(settings, cached.stat().st_size)
        check_space([(folder, size)], _OTHER_DISKS)
        return cached, False
    remote = _find(repository, file)
    here = remote.part.stat().st_size if remote.part.exists() else 0
    needs = [(remote.blob, remote.size - here), (folder, _converted_bytes(settings, remote.size))]
    check_space(needs, _OTHER_DISKS)
    done = f", of which {size_text(here)} are here" if here else ""
    log.info("downloading %s%s", size_text(remote.size), done)
    part = _fetch(remote, is_shown=True)
    return (_keep(remote, part), False) if settings.keep_original else (part, True)


@dataclass(frozen=True)
class _Remote:
    """A file of the hub as its server describes it, and its place in the hub's cache."""

    repository: str
    file: str
    revision: str
    commit: str
    etag: str
    size: int

    @property
    def folder(self) -> Path:
        return Path(constants.HF_HUB_CACHE) / f"models--{self.repository.replace('/', '--')}"

    @property
    def blob(self) -> Path:
        return self.folder / "blobs" / self.etag

    @property
    def part(self) -> Path:
        """What was received of it."""
        return self.blob.with_name(f"{self.part_start}{self.etag}{_PART}")

    @property
    def part_start(self) -> str:
        """How the names of parts of this file begin, whatever its version."""
        return f"{slug(self.file, 100)}."


def _find(repository: str, file: str, revision: str = "main") -> _Remote:
    """Raises: DownloadError: the server cannot be reached, or is no hub."""
    with _plain_errors(repository, file):
        metadata = get_hf_file_metadata(hf_hub_url(repository, file, revision=revision))
    commit, etag, size = metadata.commit_hash or "", metadata.etag or "", metadata.size
    # Tag and commit become names of files.
    are_names = re.fullmatch("[0-9a-f]{40}", commit) and re.fullmatch(r"[\w-]{1,200}", etag)
    if not are_names or not size or (revision != "main" and commit != revision):
        raise DownloadError(
            f"{constants.ENDPOINT} does not answer as a model hub does; check HF_ENDPOINT, proxy "
            "and login page of this network"
        )
    return _Remote(repository, file, revision, commit, etag, size)


def _fetch(remote: _Remote, is_shown: bool) -> Path:
    """Receive what is missing of a file, and check its hash.

    Raises: DownloadError: failure of the network, or another file than the server described.
    """
    part = remote.part
    part.parent.mkdir(parents=True, exist_ok=True)
    for old in part.parent.glob(f"{remote.part_start}*{_PART}"):
        if old != part or old.stat().st_size > remote.size:
            old.unlink()
    # Every try follows the redirect to the hub's storage again, as that address expires.
    url = hf_hub_url(remote.repository, remote.file, revision=remote.revision)
    title = Path(remote.file).name if is_shown else None
    try:
        with _plain_errors(remote.repository, remote.file), room_for(part):
            _transfer(url, part, remote.size, title)
    except _WrongData:
        part.unlink()
        raise
    if is_shown:
        log.info("checking the hash")
    if not _is_named(part, remote.etag):
        part.unlink()
        raise _damaged(remote.repository, remote.file)
    return part


def _keep(remote: _Remote, part: Path) -> Path:
    """Put a received file into the hub's cache, where its client finds it."""
    os.replace(part, remote.blob)
    snapshot = remote.folder / "snapshots" / remote.commit / remote.file
    snapshot.parent.mkdir(parents=True, exist_ok=True)
    snapshot.unlink(missing_ok=True)
    try:
        snapshot.symlink_to(os.path.relpath(remote.blob, snapshot.parent))
    # Windows, unless its user may make links.
    except OSError:
        with whole_file(snapshot) as unfinished:
            shutil.copyfile(remote.blob, unfinished)
    if remote.revision == "main":
        write_text(remote.folder / "refs" / "main", remote.commit)
    return snapshot


def _transfer(url: str, part: Path, size: int, title: str | None) -> None:
    """Append the missing bytes of `url` to `part`, over as many connections as necessary.

    Args:
        title: that of the progress bar; None: there is none.

    Raises: HTTPError: the server refused, or the network failed several times in a row.
        _WrongData: the server sends something else than it announced.
    """
    options = {"desc": title, "unit": "B", "unit_scale": True}
    options["disable"] = None if title else True
    failures = 0
    with part.open("ab") as file, tqdm(total=size, initial=file.tell(), **options) as bar:
        while (start := file.tell()) < size:
            # Ranges would count compressed bytes otherwise.
            headers = build_hf_headers() | {"Accept-Encoding": "identity"}
            if start:
                headers["Range"] = f"bytes={start}-"
            error = None
            try:
                with get_session().stream(
                    "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
                ) as response:
                    hf_raise_for_status(response)
                    if start and response.status_code != 206:
                        file.seek(0)
                        file.truncate()
                        bar.reset()
                    # Compressed data, which nobody asked for, may become any size.
                    is_plain = response.headers.get("Content-Encoding", "identity") == "identity"
                    for chunk in response.iter_raw():
                        if not is_plain or file.tell() + len(chunk) > size:
                            raise _WrongData(
                                f"{url} is damaged: it sends other data than the {size} bytes "
                                "that were announced; run the same command later"
                            )
                        file.write(chunk)
                        bar.update(len(chunk))
            except HfHubHTTPError:
                raise
            except HTTPError as reason:
                error = reason
            failures = 0 if file.tell() > start else failures + 1
            if failures == _TRIES:
                raise error or DownloadError(f"{url} ends before its {size} bytes")
            if file.tell() < size:
                bar.clear()
                log.info("the connection broke at %s; resuming", size_text(file.tell()))
                time.sleep(failures)


def _cached(repository: str, file: str, revision: str = "main") -> Path | None:
    """The file in the hub's cache, with its hash checked, or None.

    Raises: DownloadError: it was damaged, and is removed now.
    """
    found = try_to_load_from_cache(repository, file, revision=revision)
    if not isinstance(found, str):
        return None
    path = Path(found)
    # Without symbolic links the cache does not record the hash.
    if path.is_symlink():
        content = path.parent / path.readlink()
        if not _is_named(content, content.name):
            path.unlink()
            content.unlink(missing_ok=True)
            raise _damaged(repository, file)
    return path


def _is_named(path: Path, etag: str) -> bool:
    """Whether `etag` is the hash of a file: SHA-256 of large files, git's blob hash of small ones.

    Tags of other servers are no hashes; they pass with a warning.
    """
    if re.fullmatch("[0-9a-f]{64}", etag):
        digest = hashlib.sha256()
    elif re.fullmatch("[0-9a-f]{40}", etag):
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        log.warning("the server gives no hash of %s; only its size was checked", path.name)
        return True
    return file_hash(path, digest) == etag


def _converted_bytes(settings: DownloadConfig, original_bytes: int) -> int:
    """Approximate size of the installed model."""
    share = _KEPT_SHARE / 2 if settings.dtype == "float16" else _KEPT_SHARE
    return int(original_bytes * share)


@contextmanager
def _plain_errors(repository: str, file: str) -> Iterator[None]:
    """Context: turn errors of the hub's client into one line."""
    try:
        yield
    except (HTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise DownloadError(_explain(error, repository, file)) from error


def _explain(error: BaseException, repository: str, file: str) -> str:
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    page = f"{constants.ENDPOINT}/{repository}"
    if isinstance(error, OfflineModeIsEnabled):
        return (
            f"offline mode is on and {file} is not in {constants.HF_HUB_CACHE}; unset "
            "HF_HUB_OFFLINE to download it"
        )
    if isinstance(error, GatedRepoError):
        return f"{page} is gated; accept its terms there, log in with `hf auth login`, try again"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403, 404):
        return (
            f"{page} has no {file} for you (HTTP {status}); if it is private, log in with "
            "`hf auth login`; if you have the file, use `spad convert`"
        )
    if status is not None:
        return f"{page} answered HTTP {status}; run the same command later to resume"
    reason = first_line(error)
    return (
        f"no connection to {constants.ENDPOINT} ({reason}); check network and HF_ENDPOINT, then "
        "run the same command to resume"
    )


def _damaged(repository: str, file: str) -> DownloadError:
    return DownloadError(
        f"{file} of {repository} is damaged: it has not the hash that the hub gives; the damaged "
        "copy was removed, run the same command to download it again"
    )
