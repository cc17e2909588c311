"""What each node of a graph took, as a backend says it, and how much arithmetic it was."""
