"""The report of a benchmark: one HTML page, Markdown, and a CSV file.

`fronts.draw_front` draws Pareto fronts of any models, for other pages than this one.
"""

from edge_distill_bench.report.verb import Report, report

__all__ = ["Report", "report"]
