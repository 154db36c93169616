"""How the points of a job are drilled: what counts as alive, what is checked inside the guest, on which network."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vmcellar.config.section import Section
from vmcellar.config.units import Duration

Sign = Literal["agent", "serial", "screen"]
Method = Literal["restore", "boot"]


class DrillCommand(Section):
    """A command that the guest agent runs in the guest."""

    run: str = Field(min_length=1, description="a line for the guest's /bin/sh")
    exit: int = Field(default=0, ge=0, le=255, description="the exit code that is right")
    output: str = Field(default="", description="text that must stand in its output")
    limit: Duration = Field(default=60, ge=1, description="how long it may take")


class DrillFile(Section):
    """A file that must be in the guest as it was."""

    path: str = Field(min_length=1, description="the file's path in the guest")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="its SHA-256 in hex")


class DrillCount(Section):
    """A folder that must hold about as many files as it did."""

    path: str = Field(min_length=1, description="the folder's path in the guest")
    least: int = Field(default=1, ge=0, description="the fewest files that may be below it")
    most: int | None = Field(default=None, ge=0, description="the most; default: any number")


class Drill(Section):
    """The drill of a job's points. Times are the most that is waited for each sign of life, one after the other."""

    method: Method = Field(
        default="restore",
        description="restore: every byte is restored before the start; boot: the disks are served from the repository",
    )
    agent: Duration = Field(default=300, description="how long the guest agent may take to answer after the start")
    serial: Duration = Field(default=60, description="how long after that the serial console may take to show its text")
    serial_text: str = Field(default="login:", min_length=1, description="the text that shows a running guest")
    screen: Duration = Field(default=30, description="how long after that the screen may stay blank")
    accept: tuple[Sign, ...] = Field(
        default=("agent", "serial", "screen"), min_length=1, description="the signs that count as alive"
    )
    clock: Duration = Field(default=600, description="how far the guest's clock may be off")
    network: str = Field(default="", description="an isolated libvirt network for the guest; empty: no network card")
    commands: tuple[DrillCommand, ...] = ()
    files: tuple[DrillFile, ...] = ()
    counts: tuple[DrillCount, ...] = ()
    ports: tuple[int, ...] = Field(default=(), description="TCP ports of the guest that must answer; needs network")
