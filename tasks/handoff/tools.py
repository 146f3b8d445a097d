"""Names of the formats to export to; imports nothing, as the command line reads it at once."""

from typing import Literal

__all__ = ["ExportFormat"]

ExportFormat = Literal["coco-results", "coco", "yolo", "voc", "cvat", "label-studio", "fiftyone"]
