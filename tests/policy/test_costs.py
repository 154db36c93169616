"""The arithmetic of bills and thaws, against figures worked out by hand from AWS's price list."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from vmcellar.config.model import Tiers
from vmcellar.config.prices import AWS_PRICES, Prices, Retrieval
from vmcellar.config.tiers import TierSettings
from vmcellar.policy.costs import DAY, GB, MONTH, Stay, bill, early_cost, money_text, month_cost, offers, read_cost

TB = 1024 * GB
PACK = 64 << 20


def test_a_month_of_a_terabyte_in_packs_costs_what_the_list_says() -> None:
    packs = [PACK] * (TB // PACK)
    assert month_cost(AWS_PRICES["STANDARD"], packs) == pytest.approx(1024 * 0.023)
    overhead = 16384 * (32 * 0.00099 + 8 * 0.023) / (1 << 20)
    assert month_cost(AWS_PRICES["DEEP_ARCHIVE"], packs) == pytest.approx(1024 * 0.00099 + overhead)
    assert overhead < 0.004


def test_a_small_object_pays_for_the_smallest_and_for_its_overhead() -> None:
    assert month_cost(AWS_PRICES["STANDARD_IA"], [1]) == month_cost(AWS_PRICES["STANDARD_IA"], [128 << 10])
    small, whole = (month_cost(AWS_PRICES["GLACIER"], [size]) for size in (1, GB))
    assert small == pytest.approx((32769 * 0.0036 + 8192 * 0.023) / GB)
    assert whole - small == pytest.approx(0.0036 * (GB - 1) / GB)


def test_a_bill_counts_days_writes_and_what_left_too_early() -> None:
    stays = [
        Stay("hot", GB, since=0, until=7 * DAY),
        Stay("cold", GB, since=7 * DAY, until=37 * DAY),
        Stay("cold", GB, since=7 * DAY),
    ]
    prices = {"hot": Prices(gb_month=0.3), "cold": Prices(gb_month=0.03, put_1000=1.0, minimum_days=90)}
    first = bill(prices, stays, 0, 30 * DAY)
    assert (first.storage, first.writes, first.early) == pytest.approx((7 * 0.01 + 2 * 23 * 0.001, 0.002, 0))
    second = bill(prices, stays, 30 * DAY, 60 * DAY)
    assert (second.storage, second.writes, second.early) == pytest.approx(((7 + 30) * 0.001, 0, 60 * 0.001))
    whole = bill(prices, stays, 0, 60 * DAY)
    assert whole.total == pytest.approx((first + second).total)
    assert bill(prices, stays, 100 * DAY, 101 * DAY).total == pytest.approx(0.001)
    with pytest.raises(KeyError):
        bill({}, stays, 0, DAY)


def test_early_removal_costs_the_rest_of_the_minimum_time() -> None:
    deep = AWS_PRICES["DEEP_ARCHIVE"]
    assert early_cost(deep, TB, 180 * DAY) == 0
    assert early_cost(deep, TB, 150 * DAY) == pytest.approx(month_cost(deep, [TB]))
    assert MONTH == 30 * DAY


def test_a_thaw_is_priced_by_speed_and_the_list_s_own_example() -> None:
    """AWS's own worked example: 15 million objects, 100 TB, from Flexible Retrieval."""
    size, count = 102400 * GB // 15_000_000, 15_000_000
    glacier = AWS_PRICES["GLACIER"].model_copy(update={"transfer_gb": 0.0, "get_1000": 0.0, "thawed_gb_month": 0.0})
    found = {offer.speed: offer for offer in offers(glacier, [size] * count, 1)}
    assert found["standard"].retrieval == pytest.approx(750 + 1024)
    assert found["expedited"].retrieval == pytest.approx(150_000 + 3072)
    assert found["bulk"].total == 0
    assert [offer.hours for offer in found.values()] == [12, 5, 0.1]


def test_a_deep_archive_has_no_expedited_thaw_and_pays_for_copies_and_the_way_out() -> None:
    deep = AWS_PRICES["DEEP_ARCHIVE"]
    bulk, standard = offers(deep, [GB] * 10, 3)
    assert (bulk.speed, bulk.hours, standard.speed, standard.hours) == ("bulk", 48, "standard", 12)
    assert bulk.retrieval == pytest.approx(10 * 0.0025 + 10 * 0.025 / 1000)
    assert bulk.copies == pytest.approx(10 * 0.023 * 3 / 30)
    assert bulk.transfer == pytest.approx(10 * 0.09 + 10 * 0.0004 / 1000)
    assert bulk.total == pytest.approx(bulk.retrieval + bulk.copies + bulk.transfer)


def test_what_is_thawed_already_costs_no_second_thaw() -> None:
    deep = AWS_PRICES["DEEP_ARCHIVE"]
    some = offers(deep, [GB] * 10, 3, frozen=[GB] * 4)[0]
    assert some.retrieval == pytest.approx(4 * 0.0025 + 4 * 0.025 / 1000)
    assert some.transfer == offers(deep, [GB] * 10, 3)[0].transfer
    none = offers(deep, [GB] * 10, 3, frozen=[])[0]
    assert (none.retrieval, none.copies, none.hours) == (0, 0, 0)


def test_classes_that_read_at_once_offer_no_thaw() -> None:
    assert offers(AWS_PRICES["GLACIER_IR"], [GB], 1) == []
    assert read_cost(AWS_PRICES["GLACIER_IR"], [GB]) == pytest.approx(0.03 + 0.09 + 0.00001)


def test_a_tier_s_prices_are_those_of_its_class_on_aws_and_none_elsewhere() -> None:
    deep = {"storage": "s3://bucket/vms", "storage_class": "DEEP_ARCHIVE"}
    assert TierSettings.model_validate(deep).price_table == AWS_PRICES["DEEP_ARCHIVE"]
    assert TierSettings.model_validate({"storage": "s3://bucket/vms"}).price_table == AWS_PRICES["STANDARD"]
    regional = {**deep, "endpoint": "https://s3.eu-central-1.amazonaws.com"}
    assert TierSettings.model_validate(regional).price_table == AWS_PRICES["DEEP_ARCHIVE"]
    elsewhere = TierSettings.model_validate({**deep, "endpoint": "https://rgw.example:7480"})
    assert elsewhere.price_table == Prices()
    own = TierSettings.model_validate({**deep, "prices": {"gb_month": 0.5}})
    assert own.price_table == AWS_PRICES["DEEP_ARCHIVE"].model_copy(update={"gb_month": 0.5})
    disk = TierSettings.model_validate({"storage": "/srv/vms", "prices": {"gb_month": 0.01}})
    assert month_cost(disk.price_table, [GB]) == pytest.approx(0.01)
    assert TierSettings.model_validate(disk.model_dump(mode="json")) == disk


@pytest.mark.parametrize("storage_class", ["GLACIER", "DEEP_ARCHIVE"])
def test_what_cannot_be_read_back_is_no_hot_tier(storage_class: str) -> None:
    frozen = {"storage": "s3://bucket/vms", "storage_class": storage_class}
    with pytest.raises(ValidationError, match=f"read back after they are written, which {storage_class}"):
        Tiers.model_validate({"hot": frozen})
    found = Tiers.model_validate({"hot": {**frozen, "storage_class": "GLACIER_IR"}, "cold": frozen})
    assert found.cold is not None


def test_prices_may_name_a_list_and_refuse_what_they_do_not_know() -> None:
    named = TierSettings.model_validate({"storage": "/srv/vms", "prices": "GLACIER"})
    assert named.price_table == AWS_PRICES["GLACIER"]
    assert isinstance(named.price_table.retrieval["bulk"], Retrieval)
    with pytest.raises(ValidationError, match="no price list is known for GOLD"):
        Prices.model_validate("GOLD")
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        Prices.model_validate({"gb_month": -1})


def test_little_money_is_not_told_as_none() -> None:
    assert [money_text(each) for each in (0.0, 0.0012, 0.0964, 0.1, 1234.5)] == [
        "0.00",
        "0.0012",
        "0.096",
        "0.10",
        "1,234.50",
    ]
