"""The version of this distribution, stated here alone: pyproject.toml reads it."""

VERSION = "0.1.0"
