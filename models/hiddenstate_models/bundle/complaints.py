"""Complaints of pydantic as one sentence."""

from pydantic import ValidationError


def first_complaint(error: ValidationError) -> str:
    """The first complaint of a validation, as `field: what`."""
    complaint = error.errors()[0]
    where = ".".join(map(str, complaint["loc"]))
    return f"{where}: {complaint['msg']}" if where else complaint["msg"]
