"""The checkpoint's side of a comparison."""
