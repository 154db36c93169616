"""What follows when a VM's backups look strange (docs/analysis.md, "Consequences")."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vmcellar.config.section import Section

AnomalyKind = Literal["ransomware", "change", "stuck", "slow", "freeze", "growth"]


class OnAnomaly(Section):
    """Each anomaly has its consequences once, until a person has judged it (`vmcellar anomalies VM --judged TEXT`)."""

    kinds: tuple[AnomalyKind, ...] = Field(
        default=("ransomware", "stuck"), description="which anomalies have consequences; an empty list: none"
    )
    pin: int = Field(
        default=3,
        ge=0,
        le=4,
        description="points pinned: the last good one before it, and one a day, a week and a month older; 0: none",
    )
    full: bool = Field(default=True, description="the next backup reads everything")
    drill: bool = Field(default=False, description="boot the newest point at once, as a drill")
