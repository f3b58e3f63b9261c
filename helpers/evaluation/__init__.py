"""What answers are worth: metrics, intervals, benchmarks, controls."""
