"""The zoo: small subject models trained by this repository's own scripts, shipped with the record of their training."""
