"""What a run gives: images, timings, and files that say how they were made."""
