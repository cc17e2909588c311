"""Other runtimes on the same checkpoint, by turns in one run, each in an environment of its own."""
