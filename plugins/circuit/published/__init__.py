"""Published circuits: which heads, MLPs and edges of known models were found to carry out a task."""
