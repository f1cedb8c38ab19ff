"""`python -m edge_distill` is `edge-distill`."""

import sys

from edge_distill.cli import main

if __name__ == "__main__":
    sys.exit(main())
