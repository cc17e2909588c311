"""A GPU as the backends on it share it: memory, one stream, and loops that do not leave the device."""
