"""Subject models: the networks under study, behind one protocol for language and vision."""
