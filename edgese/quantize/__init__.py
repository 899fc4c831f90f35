"""Calibration (`edgese calibrate`) and the search for the products that INT8 can take."""
