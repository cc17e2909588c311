"""The commands that need more than the runtime."""
