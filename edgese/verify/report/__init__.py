"""The report of `edgese verify`: one HTML page of what was found, to be read, looked at and listened to."""
