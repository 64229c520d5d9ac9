"""What /v1/files takes: the fields of its form, and the parameters of its list."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema

from hpcserve.frontend.schemas import Body

MIN_EXPIRY_S = 3600
MAX_EXPIRY_S = 2_592_000  # 30 days, as OpenAI has it

Order = Literal["asc", "desc"]


class Expiry(Body):
    """When something is deleted: so many seconds after it was made."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=MIN_EXPIRY_S, le=MAX_EXPIRY_S)


class FileFields(Body):
    """The fields besides the file."""

    purpose: Literal["batch"]
    expires_after: Expiry | None = None


class FileForm(Body):
    """A new file, as the fields of its form: what is described; `FileFields` is what is validated."""

    file: Annotated[str, WithJsonSchema({"type": "string", "format": "binary"})]
    purpose: Literal["batch"]
    anchor: Literal["created_at"] | None = Field(None, alias="expires_after[anchor]")
    seconds: int | None = Field(None, alias="expires_after[seconds]", ge=MIN_EXPIRY_S, le=MAX_EXPIRY_S)


class ListFilesQuery(Body):
    """Which page of the files."""

    after: str | None = Field(None, description="id of the last file of the page before")
    limit: int = Field(10_000, ge=1, le=10_000)
    order: Order = Field("desc", description="by creation")
    purpose: str | None = None
