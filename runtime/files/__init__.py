"""Files that appear whole or not at all, and names that stay inside their folder."""
