"""`bundle.json`: one checked reader of every field, and what a graph must take and give."""
