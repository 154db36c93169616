"""A boto3 client from a tier's settings. Secrets are read when the tier is opened and kept by boto3 alone."""

from __future__ import annotations

from typing import Any

import boto3
from botocore.config import Config as BotoConfig
from botocore.exceptions import BotoCoreError

from vmcellar.config.tiers import TierSettings
from vmcellar.tiers.s3_errors import translate

CONNECTIONS = 32
_CONNECT_SECONDS = 10


def make_client(settings: TierSettings, what: str) -> Any:
    """A client; any thread may use it. PermanentError when credentials or region cannot be found.

    boto3's own retries are off: the tier retries by class of error. Its own checksums are asked for only where S3
    demands them, since each request that carries data has a Content-MD5, which every server checks.
    """
    config = BotoConfig(
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=min(_CONNECT_SECONDS, settings.timeout),
        read_timeout=settings.timeout,
        max_pool_connections=CONNECTIONS,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"} if settings.endpoint else {},
    )
    keys = {}
    if settings.access_key is not None and settings.secret_key is not None:
        keys = {
            "aws_access_key_id": settings.access_key.read().decode(),
            "aws_secret_access_key": settings.secret_key.read().decode(),
        }
    try:
        session = boto3.session.Session(profile_name=settings.profile, region_name=settings.region)
        region = settings.region or session.region_name or "us-east-1"
        verify = str(settings.ca) if settings.ca else None
        return session.client(
            "s3", endpoint_url=settings.endpoint, region_name=region, config=config, verify=verify, **keys
        )
    except (BotoCoreError, ValueError) as error:
        raise translate(error, what) from error
