"""Foreign formats of stores: exporting a store to one, and importing one into a store."""
