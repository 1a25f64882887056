"""Settings of `posemill status`, `verify`, `compact` and `gc`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from pipeline.errors import UsageError
from pipeline.manifest import Manifest
from pipeline.runfile import NAME as RUN_FILE
from pipeline.runfile import read_run_file
from pipeline.settings import Settings
from pipeline.storage import Output, StorageOptions

Column = Literal["media_type", "status", "error_code", "box_source"]


class OutputSettings(Settings):
    """An output of annotate."""

    POSITIONAL: ClassVar[str] = "output"

    output: str = Field(..., description="an output of posemill annotate", min_length=1)
    s3_endpoint: str | None = Field(None, description="URL of an S3-compatible server")

    def open(self) -> Output:
        """The output. Raises UsageError where there is none."""
        output = Output(self.output, StorageOptions(self.s3_endpoint))
        document = read_run_file(output)
        if document is None:
            raise UsageError(f"{self.output} is no output of posemill annotate: no {RUN_FILE}")
        if origin := document.get("compacted_from"):
            raise UsageError(f"{self.output} is a copy made by compact; give {origin}")
        return output

    def planned(self) -> tuple[Output, Manifest]:
        """The output and its plan. Raises UsageError where nothing is planned."""
        output = self.open()
        manifest = Manifest.load(output)
        if not manifest.files:
            raise UsageError(f"nothing is planned in {self.output}; run posemill annotate")
        return output, manifest


class StatusSettings(OutputSettings):
    """How far an annotation is.

    posemill status OUTPUT
    """


class VerifySettings(OutputSettings):
    """Check a finished output: every planned unit has rows, nothing is doubled or left over.

    posemill verify OUTPUT       exit code 0: clean, 1: not
    """


class GcSettings(OutputSettings):
    """Remove what stopped and killed runs have left in an output.

    posemill gc OUTPUT
    """

    dry_run: bool = Field(False, description="only say what would be removed")


class CompactSettings(OutputSettings):
    """Copy the table of a finished output into few large files, sorted by uri.

    posemill compact OUTPUT --to DEST
    """

    to: str = Field(..., description="empty folder or s3:// prefix", min_length=1)
    partition_by: tuple[Column, ...] = Field(
        (), description="folders by these columns: media_type, status, error_code, box_source"
    )
    rows_per_file: int = Field(500_000, description="most rows in a file", ge=1, le=10_000_000)
    memory: int = Field(1024, description="MiB for sorting; more goes to TMPDIR", ge=128)
