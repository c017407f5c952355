"""Tasks: where clean, corrupted and negative prompts come from."""
