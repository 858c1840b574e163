"""Sketches on many machines, by engines that exist: a fold on each part and one tree of merges."""
