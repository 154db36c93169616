"""Commands around the backup of a VM."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vmcellar.config.section import Section
from vmcellar.config.units import Duration

When = Literal["before", "thawed", "after"]


class Hook(Section):
    """A command that runs before the guest is frozen, once its instant is held and it is thawed, or at the end."""

    when: When = Field(description="before the freeze, after the thaw, or after all")
    run: str = Field(min_length=1, description="a line for /bin/sh")
    at: Literal["host", "guest"] = Field(default="host", description="where: this host, or in the guest by its agent")
    limit: Duration = Field(default=60, ge=1, description="then it is killed; in a guest, no longer waited for")
    on_failure: Literal["fail", "warn"] = Field(
        default="fail", description="fail: the run is red, and a backup not yet begun does not begin; warn: go on"
    )
