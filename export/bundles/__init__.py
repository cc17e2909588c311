"""Bundles made of bundles."""
