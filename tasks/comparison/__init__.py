"""Two models, or two runs, on the same images: what changed, told without truth and with it."""
