"""``python -m boxwood`` is the ``boxwood`` command."""

import sys

from boxwood.cli import main

if __name__ == "__main__":
    sys.exit(main())
