"""Built-in plugins, each registered through the entry-point group that anyone uses."""
