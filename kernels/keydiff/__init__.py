"""What pattern keydiff_window needs besides the back-ends: its choice of keys, sinks that change, their prefill."""
