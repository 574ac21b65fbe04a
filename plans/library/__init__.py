"""Shipped plans, loaded by name with Plan.load."""
