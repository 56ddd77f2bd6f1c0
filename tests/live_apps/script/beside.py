"""What a script finds, as it is beside it."""

DEFAULT = "nobody"
