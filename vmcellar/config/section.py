"""The base of all parts of `vmcellar.yaml`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Unknown keys are refused, and numbers that are infinite or none; values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
