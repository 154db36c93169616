"""What evidence must show: Great Expectations suites over it, and service levels."""
