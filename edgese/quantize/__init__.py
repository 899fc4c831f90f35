"""`edgese calibrate` and the search for what INT8 can take."""
