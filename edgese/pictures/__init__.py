"""What all pictures share: matplotlib, loaded once, and colours."""
