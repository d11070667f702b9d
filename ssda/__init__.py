"""SSDA: cross-domain scene segmentation with dynamic subdomains, in PyTorch."""
