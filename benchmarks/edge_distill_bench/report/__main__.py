"""`python -m edge_distill_bench.report FOLDER`, where the command line is not installed."""

import argparse
import sys
from pathlib import Path

from edge_distill_bench.report.verb import report
from edge_distill_runtime.errors import EdgeDistillError

parser = argparse.ArgumentParser(prog="python -m edge_distill_bench.report", description=report.__doc__)
parser.add_argument("folder", type=Path)
try:
    result = report(parser.parse_args().folder)
except EdgeDistillError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
print(result.html, result.markdown, result.csv, sep="\n")
