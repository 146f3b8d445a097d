"""How a network is fitted to images with truth; no Prefect."""
