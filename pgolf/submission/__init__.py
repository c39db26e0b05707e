"""The submission folder of a contest entry: written, counted, checked."""
