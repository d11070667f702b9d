"""The embedded benchmark: procedural street scenes in two looks, *game* and *city*."""
