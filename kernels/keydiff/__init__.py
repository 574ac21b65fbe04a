"""Provide what sinks of selected keys need besides the back-ends: the selection, sinks that change, their prefill."""
