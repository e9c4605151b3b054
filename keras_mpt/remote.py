"""Remote tickets, `hf://owner/name` and `https://…/x.mpt`, downloaded once and cached."""

import hashlib
import os
import pathlib
import re
import urllib.parse

from keras_mpt import requirements
from keras_mpt.files import sha256_of

TICKET = "ticket.mpt"  # the name that `hub.push_to_hub` gives it
_HUB = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+?))?(?:/(?P<file>[\w./-]+\.mpt))?")


def is_remote(source):
    """Return whether a ticket is given by an address: `hf://…`, `https://…` or `http://…`."""
    return isinstance(source, str) and source.startswith(("hf://", "https://", "http://"))


def locate(source, argument="path"):
    """Return the path of a ticket, after downloading a remote one.

    - `hf://owner/name`, `hf://owner/name@revision` and `hf://owner/name/folder/x.mpt`: on the Hugging Face hub, through
      huggingface_hub and its cache. The default file is `ticket.mpt`. If the repository has a `preset.json`, the ticket
      must have the checksum in it.
    - `https://host/x.mpt`, with `#sha256=…` if the file must have that checksum: through `keras.utils.get_file`.
    - A folder that has a `ticket.mpt`, such as a clone of a hub's repository.
    - Everything else is a path and returned as it is.

    With `HF_HUB_OFFLINE=1` in the environment, nothing is downloaded: a file that is not in the cache is an error.

    Args:
        source: A string or path.
        argument: Name of the argument that it was given as, for errors.

    Returns:
        A string or path.

    Raises:
        ValueError: The address has another form, or the checksum of the file differs.
        ImportError: huggingface_hub is not installed.
        OSError: The file does not exist, or cannot be downloaded.
    """
    if not is_remote(source):
        folder = isinstance(source, (str, os.PathLike)) and pathlib.Path(source).is_dir()
        return pathlib.Path(source) / TICKET if folder and (pathlib.Path(source) / TICKET).is_file() else source
    return _from_hub(source, argument) if source.startswith("hf://") else _from_web(source, argument)


def is_offline():
    """Return whether downloads are disabled."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _from_hub(source, argument):
    match = _HUB.fullmatch(source)
    if not match:
        raise ValueError(f"`{argument}` must be of the form hf://owner/name[@revision][/x.mpt]. Received: {source!r}")
    with requirements.extra("hub", "hf://"):
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def fetch(file):
        return pathlib.Path(
            huggingface_hub.hf_hub_download(
                match["repo"], file, revision=match["revision"], local_files_only=is_offline()
            )
        )

    try:
        path = fetch(match["file"] or TICKET)
    except (OSError, EntryNotFoundError, LocalEntryNotFoundError) as error:
        offline = " with HF_HUB_OFFLINE set" if is_offline() else ""
        raise FileNotFoundError(f"{source} cannot be fetched{offline}: {str(error).strip()}") from error
    try:
        preset = fetch("preset.json")
    except (OSError, EntryNotFoundError, LocalEntryNotFoundError):  # one need not be there
        return path
    if match["file"] in (None, TICKET):
        _check(path, _sha256_of_preset(preset), source)
    return path


def _sha256_of_preset(path):
    import json

    content = json.loads(path.read_text(encoding="utf-8"))
    return content.get("sha256") if isinstance(content, dict) else None


def _from_web(source, argument):
    import keras

    url, _, fragment = source.partition("#")
    name = pathlib.PurePosixPath(urllib.parse.urlsplit(url).path).name
    if not name.endswith(".mpt") or fragment and not re.fullmatch(r"sha256=[0-9a-fA-F]{64}", fragment):
        raise ValueError(f"`{argument}` must be of the form https://host/x.mpt[#sha256=…]. Received: {source!r}")
    wanted = fragment.removeprefix("sha256=").lower() or None
    # One folder for each address: two files of one name must not meet in the cache.
    folder = f"keras_mpt/{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    home = pathlib.Path(os.environ.get("KERAS_HOME") or pathlib.Path.home() / ".keras")  # as Keras finds it
    cached = home / folder / name
    if is_offline():
        if not cached.is_file():
            raise FileNotFoundError(f"{source} cannot be fetched with HF_HUB_OFFLINE set, and {cached} is not there.")
    elif not cached.is_file() or wanted not in (None, sha256_of(cached)):
        folder = f"{folder}/unfinished"  # a download that is killed leaves a part of the file there
        try:
            fetched = keras.utils.get_file(
                name, url, cache_dir=home, cache_subdir=folder, file_hash=wanted, force_download=True
            )
        except Exception as error:  # Keras raises bare exceptions
            raise OSError(f"{source} cannot be fetched: {error}") from error
        cached = pathlib.Path(fetched).parents[1] / name  # elsewhere where `home` cannot be written to
        os.replace(fetched, cached)
    _check(cached, wanted, source)
    return cached


def _check(path, wanted, source):
    """Raise ValueError unless a file has the checksum that is wanted; None accepts all."""
    found = sha256_of(path)
    if wanted is not None and found != wanted:
        raise ValueError(f"{source} is not the file that was published: SHA-256 {found}, not {wanted} ({path}).")
