"""What every room may use: files and folders written whole, sizes, threads, ranks. Knows nothing of models or artifacts."""
