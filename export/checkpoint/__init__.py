"""A checkpoint in any of its forms, as one folder in diffusers' layout, and the facts about its family."""
