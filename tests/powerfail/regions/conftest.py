"""Fixtures of this folder."""

from tests.powerfail.regions.s3 import bucket, s3_endpoint

__all__ = ["bucket", "s3_endpoint"]
