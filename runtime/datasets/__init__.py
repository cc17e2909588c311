"""Many requests from a file to a folder of pictures."""
