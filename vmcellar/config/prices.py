"""What a tier costs: a price table per tier, with AWS's list prices where the tier is AWS's and nothing else is said.

A GB is 2**30 bytes and a month 30 days, as AWS bills. Sources: the price list of S3 in us-east-1 (first 50 TB of a
month) and the user guide, "Archive retrieval options"; as of June 2026. Prices change: write your own where it matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from vmcellar.config.section import Section
from vmcellar.config.units import Size

AWS_PRICES_AS_OF = "2026-06"
"""When the defaults below were list prices."""

Speed = Literal["bulk", "standard", "expedited"]
SPEEDS: tuple[Speed, ...] = ("bulk", "standard", "expedited")
"""Retrieval classes of archives, slowest and cheapest first."""

ARCHIVE_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})
"""Storage classes of S3 whose objects must be thawed before they are read; GLACIER_IR reads at once."""

_TRANSFER = 0.09
_KIB = 1 << 10


class Retrieval(Section):
    """What a thaw costs at one speed, and how long it takes at most as a rule."""

    gb: float = Field(default=0.0, ge=0, description="per GB thawed")
    requests_1000: float = Field(default=0.0, ge=0, description="per 1,000 objects thawed")
    hours: float = Field(default=0.0, ge=0, description="until the objects can be read")


class Prices(Section):
    """What a tier costs, in one currency: a table, or the name of a class of AWS whose list prices it has."""

    gb_month: float = Field(default=0.0, ge=0, description="per GB and month of 30 days")
    put_1000: float = Field(default=0.0, ge=0, description="per 1,000 objects written")
    get_1000: float = Field(default=0.0, ge=0, description="per 1,000 reads")
    read_gb: float = Field(default=0.0, ge=0, description="per GB read, where the class charges for it")
    transfer_gb: float = Field(default=0.0, ge=0, description="per GB that leaves the provider's network")
    retrieval: Mapping[Speed, Retrieval] = Field(
        default={}, description="per speed (bulk, standard, expedited): what a thaw costs; none: reads at once"
    )
    thawed_gb_month: float = Field(default=0.0, ge=0, description="per GB and month of the copy that a thaw makes")
    minimum_days: int = Field(default=0, ge=0, description="days that are paid for, however early an object goes")
    minimum_object: Size = Field(default=0, ge=0, description="bytes that are paid for at least, per object")
    overhead: Size = Field(default=0, ge=0, description="bytes paid for besides each object, at this class's price")
    overhead_hot: Size = Field(default=0, ge=0, description="the same, at the price of a thawed copy")

    @model_validator(mode="before")
    @classmethod
    def _from_class(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in AWS_PRICES:
            raise ValueError(f"no price list is known for {value}; there are {', '.join(AWS_PRICES)}")
        return AWS_PRICES[value].model_dump()

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string", "enum": sorted(AWS_PRICES)}, handler(schema)]}


_ARCHIVE = Prices(
    get_1000=0.0004, transfer_gb=_TRANSFER, thawed_gb_month=0.023, overhead=32 * _KIB, overhead_hot=8 * _KIB
)

AWS_PRICES: Mapping[str, Prices] = {
    "STANDARD": Prices(gb_month=0.023, put_1000=0.005, get_1000=0.0004, transfer_gb=_TRANSFER),
    "STANDARD_IA": Prices(
        gb_month=0.0125,
        put_1000=0.01,
        get_1000=0.001,
        read_gb=0.01,
        transfer_gb=_TRANSFER,
        minimum_days=30,
        minimum_object=128 * _KIB,
    ),
    "GLACIER_IR": Prices(
        gb_month=0.004,
        put_1000=0.02,
        get_1000=0.01,
        read_gb=0.03,
        transfer_gb=_TRANSFER,
        minimum_days=90,
        minimum_object=128 * _KIB,
    ),
    "GLACIER": _ARCHIVE.model_copy(
        update={
            "gb_month": 0.0036,
            "put_1000": 0.03,
            "minimum_days": 90,
            "retrieval": {
                "bulk": Retrieval(hours=12),
                "standard": Retrieval(gb=0.01, requests_1000=0.05, hours=5),
                "expedited": Retrieval(gb=0.03, requests_1000=10.0, hours=0.1),
            },
        }
    ),
    "DEEP_ARCHIVE": _ARCHIVE.model_copy(
        update={
            "gb_month": 0.00099,
            "put_1000": 0.05,
            "minimum_days": 180,
            "retrieval": {
                "bulk": Retrieval(gb=0.0025, requests_1000=0.025, hours=48),
                "standard": Retrieval(gb=0.02, requests_1000=0.1, hours=12),
            },
        }
    ),
}
"""By storage class. A class that is not here costs what the configuration says."""
