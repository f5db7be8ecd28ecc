"""Updates that keep what an older version got right: anchors, its stored answers, and the losses that hold a new version to them."""
