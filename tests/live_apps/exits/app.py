"""A model that exits while it loads."""

import sys

sys.exit("no licence")
