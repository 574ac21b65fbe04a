"""Measure the harm of cuts: calibration text, influence estimators, and the profile's file."""
