"""Who may use a target, between processes, and a pipeline, between threads."""
