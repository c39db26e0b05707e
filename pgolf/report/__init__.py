"""Results as JSON; every table, plot and page is drawn here, and only from that JSON.

pack_report.py: one pack. pack_table.py: its table. terminal.py: other tables, and lines. names.py: names where room is
little. frontier.py: all of a sweep (plots.py: PNG; svg.py: drawn by hand, in both themes; page.py: HTML; curves.py: what
they share). anatomy_page.py: an artifact. rendering.py: what fills templates/.
"""

from pgolf.common.files import write_json, write_text
from pgolf.report.pack_report import Dropped, Fate, Report, TensorRow
from pgolf.report.pack_table import pack_table
from pgolf.report.terminal import estimate_lines, pack_summary, submission_table

__all__ = [
    "Dropped",
    "Fate",
    "Report",
    "TensorRow",
    "estimate_lines",
    "pack_summary",
    "pack_table",
    "submission_table",
    "write_json",
    "write_text",
]
