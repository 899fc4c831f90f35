"""`edgese serve`: streams over WebSocket, enhanced together."""
