"""`python -m voxsam.cli`: the command line without an installed `voxsam` script."""

import sys

from voxsam.cli import main

if __name__ == "__main__":
    sys.exit(main())
