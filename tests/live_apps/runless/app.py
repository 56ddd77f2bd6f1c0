"""A model that is never run."""
