"""Benches of transfer jobs against torchvision and scikit-learn."""
