"""Many runs at once: a grid of options becomes jobs, Dask's workers make them, one table and one report hold them all.

`workbench.batch` is the way in; the package cannot have that name, as importing it would put the module in its place.
"""
