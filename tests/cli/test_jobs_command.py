"""`vmcellar jobs` and `vmcellar tag`, on libvirt's own test driver: it needs no daemon."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import libvirt
import pytest
import yaml

from tests.cli.conftest import Cli
from vmcellar.backup.selection import select
from vmcellar.config import load_config
from vmcellar.errors import PermanentError
from vmcellar.sources.libvirt_tags import NAMESPACE

DOMAIN = """<domain type='test'><name>{name}</name><memory>8192</memory><os><type>hvm</type></os>
<metadata><other:x xmlns:other='urn:other'>kept</other:x></metadata></domain>"""
JOBS = [
    {"name": "prod", "schedule": "0 2 * * *", "domains": ["tag:prod", "!tag:scratch"]},
    {"name": "web", "domains": ["web[12]"]},
    {"name": "none", "domains": ["mail*"]},
]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """A hypervisor with the VMs db1 and web1, which run, and web2, which is off; the connection keeps it alive."""
    uri = "test:///default"
    with closing(libvirt.open(uri)) as connection:
        clear(connection)  # the driver's own VM, or what an earlier connection, still referred to, left
        for name in ("db1", "web1", "web2"):
            domain = connection.defineXML(DOMAIN.format(name=name))
            if name != "web2":
                domain.create()
        path = tmp_path / "vmcellar.yaml"
        path.write_text(yaml.safe_dump({"tiers": {"hot": "repo"}, "libvirt": {"uri": uri}, "backups": JOBS}))
        yield path
        clear(connection)


def clear(connection: Any) -> None:
    for domain in connection.listAllDomains():
        if domain.isActive():
            domain.destroy()
        domain.undefine()


def matches(cli: Cli) -> dict[str, list[str]]:
    result = cli("jobs", "--json")
    assert result.code == 0, result.err
    return {job["name"]: [vm["vm"] for vm in job["vms"]] for job in json.loads(result.out)}


def test_a_tag_puts_a_vm_into_a_job_and_out_of_it_again(cli: Cli, host: Path) -> None:
    assert matches(cli) == {"prod": [], "web": ["web1", "web2"], "none": []}
    assert cli("tag", "web2", "--add", "prod", "--add", "eu").out == "web2: eu prod\n"
    assert cli("tag", "db1", "--add", "prod").code == 0
    assert cli("tag", "web2").out == "web2: eu prod\n"
    assert matches(cli)["prod"] == ["db1", "web2"]
    assert cli("tag", "db1", "--add", "scratch").code == 0
    assert matches(cli)["prod"] == ["web2"], "a tag that leaves out wins"
    assert json.loads(cli("tag", "web2", "--remove", "prod", "--remove", "eu", "--json").out)["tags"] == []
    assert matches(cli)["prod"] == []
    assert host.exists()


def test_the_job_backs_up_what_its_tags_choose(cli: Cli, host: Path) -> None:
    config = load_config(host)
    with pytest.raises(PermanentError, match="job prod: no VM matches domains: tag:prod"):
        select(config, (), "prod", full=False)
    cli("tag", "db1", "--add", "prod")
    cli("tag", "web2", "--add", "prod")
    chosen = select(config, (), "prod", full=False)
    assert ([request.vm for request in chosen.requests], chosen.off) == (["db1"], ("web2",))


def test_a_vm_in_no_job_or_in_several_is_said_so(cli: Cli, host: Path) -> None:
    cli("tag", "web1", "--add", "prod")
    result = cli("jobs")
    assert "web[12]" in result.out
    assert "web1, web2 (off)" in result.out
    assert "no job takes db1" in result.err
    assert "web1 is taken by several jobs: prod, web" in result.err
    assert "job none matches no VM" in result.err
    assert host.exists()


def test_virsh_sees_the_tags_and_other_metadata_stays(cli: Cli, host: Path) -> None:
    cli("tag", "db1", "--add", "prod")
    with closing(libvirt.open("test:///default")) as connection:
        domain = connection.lookupByName("db1")
        kind = libvirt.VIR_DOMAIN_METADATA_ELEMENT
        assert domain.metadata(kind, NAMESPACE) == "<tags>prod</tags>"
        assert "kept" in domain.metadata(kind, "urn:other")
    assert host.exists()


@pytest.mark.parametrize("word", ["two words", "", "a,b", "<x>", "-x"])
def test_what_is_no_tag_is_bad_use(cli: Cli, host: Path, word: str) -> None:
    result = cli("tag", "db1", "--add", word)
    assert result.code == 2
    assert cli("tag", "db1").out == "db1: no tags\n"
    assert host.exists()


def test_an_unknown_vm_names_similar_ones(cli: Cli, host: Path) -> None:
    result = cli("tag", "db", "--add", "prod")
    assert (result.code, "db1" in result.err) == (1, True)
    assert host.exists()
