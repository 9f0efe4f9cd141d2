"""Render records as one self-contained HTML file: records -> figures (plain data) -> SVG -> page."""

from resfit.report.page import render, write_report

__all__ = ["render", "write_report"]
