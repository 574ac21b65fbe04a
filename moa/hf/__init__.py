"""Provide what the project needs to know of transformers' models."""
