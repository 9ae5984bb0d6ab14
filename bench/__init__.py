"""Evidence: timings of ops and steps."""
