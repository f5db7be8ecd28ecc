"""Knowledge edits: facts written into MLP output matrices in closed form (MEMIT, AlphaEdit)."""
