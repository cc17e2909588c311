"""What is installed here: this version, the floors of what it stands on, and what of that may speak to a network."""
