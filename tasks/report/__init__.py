"""One self-contained HTML report, and the same numbers as markdown."""

from pixelmill.tasks.report.build import build_report, report_files
from pixelmill.tasks.report.markdown import summary_markdown
from pixelmill.tasks.report.summary import RunSummary, summarise_run

__all__ = ["RunSummary", "build_report", "report_files", "summarise_run", "summary_markdown"]
