"""Rules of a policy: how they are written (load, when), what they ask (measures), how they read (words)."""
