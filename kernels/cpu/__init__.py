"""C++ kernels for processors: which there are, how they are compiled, and when torch calls them."""
