"""`edgese bench`: latency, streams per device, cold start and memory, in fresh processes, and what to make of them."""
