"""Profiler: calibration data, influence estimators, the profile artifact."""
