"""A model whose import fails."""

raise OSError("no weights")
