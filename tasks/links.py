"""Ways between the reports of a VM, as links that the UI opens in a new tab.

A link leads to the newest report of a kind itself: the page of all reports of a kind shows no more of each than a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.filters import ArtifactCollectionFilter, ArtifactCollectionFilterKey
from prefect.client.schemas.objects import ArtifactCollection

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

KINDS = ("backup", "drill", "verification", "restore")
"""Of reports about a VM, as their keys begin."""

AT_ONCE = 200
"""Artifacts that the server gives in one answer at most."""

Newest = Mapping[str, ArtifactCollection]
"""The newest artifact of each key that has one."""


def artifact_key(prefix: str, name: str) -> str:
    """A valid artifact key for a VM or a job: letters, digits and dashes."""
    return f"{prefix}-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-') or 'vm'}"


def link(words: str, artifact: UUID | str) -> str:
    """To an artifact, as Markdown; `words` are shown as they are."""
    return f"[{words}](/artifacts/artifact/{artifact})"


def links_to_backups(vms: Iterable[str], there: Newest) -> dict[str, str]:
    """Each VM's name, as a link to the report of its newest backup where there is one."""
    found = {vm: there.get(artifact_key("backup", vm)) for vm in vms}
    return {vm: vm if report is None else link(vm, report.latest_id) for vm, report in found.items()}


def linked(markdown: str, kind: str, vm: str, reports: Mapping[str, UUID]) -> str:
    """A report with the way to the newest `reports` of the other kinds, in place of the one that it had before."""
    parts = []
    for other in KINDS:
        key = artifact_key(other, vm)
        everything = f"[all](/artifacts/key/{key})"
        if other == kind:
            parts.append(f"this {other} ({everything})")
        else:
            parts.append(f"{link(other, reports[key])} ({everything})" if key in reports else f"no {other} yet")
    begin = f"\n\nReports of {vm}: "
    return f"{markdown.rpartition(begin)[0] or markdown.rstrip()}{begin}{', '.join(parts)}\n"


async def newest(client: PrefectClient, keys: Iterable[str]) -> Newest:
    """The newest artifacts of up to `AT_ONCE` keys; one request."""
    wanted = ArtifactCollectionFilter(key=ArtifactCollectionFilterKey(any_=[*keys][:AT_ONCE]))
    return {each.key: each for each in await client.read_latest_artifacts(artifact_filter=wanted)}


def reports_of(vm: str, there: Newest) -> dict[str, UUID]:
    """The newest report of each kind about a VM, by its key."""
    keys = [artifact_key(kind, vm) for kind in KINDS]
    return {key: there[key].latest_id for key in keys if key in there}


async def lead_to(client: PrefectClient, kind: str, vm: str, made: UUID, there: Newest) -> None:
    """Let the newest reports of the other kinds, which are `there`, lead to the new one. They are written anew."""
    reports = {**reports_of(vm, there), artifact_key(kind, vm): made}
    for other in KINDS:
        report = there.get(artifact_key(other, vm))
        if other != kind and report is not None:
            text = linked(str(report.data), other, vm, reports)
            await client.update_artifact(report.latest_id, ArtifactUpdate(data=text))
