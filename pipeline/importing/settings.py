"""The settings of `posemill import`."""

from __future__ import annotations

from typing import Any, Literal, Self, get_args

from pydantic import model_validator

from pipeline.config import setting
from pipeline.settings import Settings
from pipeline.storage import StorageOptions

Format = Literal["lsp", "lspet", "mpii", "coco", "json", "annotations"]


class ImportSettings(Settings):
    """Write the samples table that `posemill train` and `posemill evaluate` read.

    posemill import FORMAT INPUT OUTPUT.parquet

    FORMAT       INPUT
    lsp, lspet   the dataset's folder: joints.mat and images/
    mpii         mpii_human_pose_v1_u12_1.mat, the JSON of the CPM release, or a folder with it
    coco         person_keypoints_*.json, or a folder with it
    json         folder with annotations.json and images/
    annotations  output folder of `posemill annotate`, local or s3://
    """

    format: Format = setting("run", ..., "what INPUT is: lsp, lspet, mpii, coco, json, annotations")
    input: str = setting("run", ..., "folder or file with the labels", min_length=1)
    output: str = setting("run", ..., "samples table to write (.parquet)", min_length=1)
    images: str | None = setting(
        "run", None, "folder of the pictures, where it is not beside the labels"
    )
    skeleton: str | None = setting(
        "run",
        None,
        "lsp14, mpii16, coco17 or a YAML file; joints are matched by name (default: the labels')",
    )
    split: str | None = setting(
        "run", None, "split of all samples (default: as the source says)", min_length=1
    )
    tune_share: float = setting(
        "run",
        0.04,
        "share of the split train that is kept apart as the split tune, near-duplicates together; "
        "0: none, and near-duplicates are not looked for",
        ge=0,
        le=0.5,
    )
    pictures: Literal["bytes", "uri"] = setting(
        "run", "bytes", "what the table holds of a picture: the encoded file, or only its address"
    )
    threshold: float = setting(
        "run", 0.45, "annotations: least score of a joint that counts as labelled", ge=0, le=1
    )
    max_pixels: int = setting("run", 100_000_000, "largest picture that is decoded", ge=1)
    preview: str | None = setting("run", None, "also draw some samples on this sheet (.jpg, .png)")
    s3_endpoint: str | None = setting("run", None, "URL of an S3-compatible server")
    s3_anonymous: bool = setting("run", False, "read public buckets without credentials")
    s3_requester_pays: bool = setting("run", False, "pay for reading requester-pays buckets")

    @model_validator(mode="before")
    @classmethod
    def _check_format(cls, values: dict[str, Any]) -> dict[str, Any]:
        if "format" not in values:
            raise ValueError(f"--format is needed: one of {', '.join(get_args(Format))}")
        return values

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.images and self.format == "annotations":
            raise ValueError("--images does not go with annotations: the table has the addresses")
        if "://" in self.output:
            raise ValueError(f"--output {self.output}: give a local file")
        return self

    @property
    def storage(self) -> StorageOptions:
        """How pictures and labels are reached."""
        return StorageOptions(self.s3_endpoint, self.s3_anonymous, self.s3_requester_pays)
