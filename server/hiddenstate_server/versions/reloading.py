"""Models that come and go while the server runs: the model folder is looked at now and then, and when asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import structlog

from hiddenstate_server.errors import InternalError, StartError
from hiddenstate_server.sessions.host import Host
from hiddenstate_server.settings import Settings
from hiddenstate_server.stepping.model import ServedModel
from hiddenstate_server.versions.repository import LoadedModel, bundle_digest, bundle_folders, load_model

log = structlog.get_logger("hiddenstate_server.models")


class _Seen(NamedTuple):
    """A bundle when it was last looked into: unless something of this changes, it is not again."""

    files: tuple[tuple[str, int, int], ...]
    """Name, size and time of change of every file."""
    served: str | None
    """Digest of the bundle served under its name."""


class Reload(NamedTuple):
    """What one look at the model folder led to, by NAME/VERSION."""

    loaded: list[str]
    retired: list[str]
    refused: dict[str, str]
    """Why a bundle is not served as it stands in the folder."""


class _Findings(NamedTuple):
    present: set[str]
    loaded: list[LoadedModel]
    unchanged: set[str]
    """Served already, from the very bundle that stands in the folder."""


class Reloader:
    """Has a host serve what stands in the model folder."""

    def __init__(self, settings: Settings, host: Host, changed: Callable[[], Awaitable[None]]) -> None:
        """`changed` is awaited whenever what is served has changed."""
        self._settings = settings
        self._host = host
        self._changed = changed
        self._seen: dict[str, _Seen] = {}
        self._refused: dict[str, str] = {}
        self._one_at_a_time = asyncio.Lock()

    async def watch(self) -> None:
        """Looks every so often, for ever."""
        unreadable = ""
        while True:
            await asyncio.sleep(self._settings.reload_interval)
            try:
                await self.reload()
                unreadable = ""
            except InternalError as error:
                if str(error) != unreadable:
                    log.error("the models stay as they are", reason=str(error))
                unreadable = str(error)

    async def reload(self) -> Reload:
        """Looks now; InternalError if the folder cannot be read, and then everything stays as it is."""
        async with self._one_at_a_time:
            served = {str(model.info): model for model in self._host.models}
            digests = {name: model.info.digest for name, model in served.items()}
            try:
                # Reading, hashing and compiling take their time: in a thread they hold nobody up.
                findings = await asyncio.to_thread(self._look, digests)
            except (OSError, StartError) as error:
                raise InternalError(f"the model folder cannot be read: {error}") from error
            return await self._apply(findings, served)

    async def _apply(self, findings: _Findings, served: Mapping[str, ServedModel]) -> Reload:
        loaded, retired = [], []
        for new in findings.loaded:
            self._host.add_model(*new)
            loaded.append(str(new.info))
        for name, model in served.items():
            if model not in self._host.models:
                continue  # unloaded meanwhile
            if name not in findings.present and not model.retired:
                model.retired = True
                retired.append(name)
            elif name in findings.unchanged and model.retired:
                model.retired = False
                loaded.append(name)
        if loaded or retired:
            log.info("models changed", loaded=loaded, retired=retired)
            await self._changed()
        return Reload(loaded, retired, dict(self._refused))

    # in a thread

    def _look(self, served: Mapping[str, str]) -> _Findings:
        """What the folder holds now. Loads what is new; `served` has the digests of what is not."""
        findings = _Findings(set(), [], set())
        for folder in bundle_folders(self._settings.model_folder):
            name = f"{folder.parent.name}/{int(folder.name)}"
            findings.present.add(name)
            state = _Seen(_files(folder), served.get(name))
            if self._seen.get(name) != state:
                self._seen[name] = state
                self._take(name, folder, served.get(name), findings)
            elif name in served and name not in self._refused:
                findings.unchanged.add(name)
        for name in self._seen.keys() - findings.present:
            del self._seen[name]
            self._refused.pop(name, None)
        return findings

    def _take(self, name: str, folder: Path, digest: str | None, findings: _Findings) -> None:
        """Deals with a folder that is new or has changed."""
        try:
            if digest is None:
                findings.loaded.append(load_model(folder, self._settings))
            elif digest == bundle_digest(folder):
                findings.unchanged.add(name)
            else:
                raise StartError(f"{folder} has changed, but {name} is served already; give it a version of its own")
        except (OSError, StartError) as error:
            self._refuse(name, str(error))
        except Exception as error:
            # Whatever is wrong with a bundle, those that are served go on.
            log.exception("a bundle cannot be loaded", bundle=name)
            self._refuse(name, f"{folder} cannot be loaded: {type(error).__name__}: {error}")
        else:
            self._refused.pop(name, None)

    def _refuse(self, name: str, sentence: str) -> None:
        if self._refused.get(name) != sentence:
            log.warning("a bundle was refused", bundle=name, reason=sentence)
        self._refused[name] = sentence


def _files(folder: Path) -> tuple[tuple[str, int, int], ...]:
    entries = ((path.name, path.stat()) for path in sorted(folder.iterdir()))
    return tuple((name, facts.st_size, facts.st_mtime_ns) for name, facts in entries)
