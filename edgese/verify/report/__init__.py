"""Report of `edgese verify`: one HTML page of what was found, with pictures and sounds."""
