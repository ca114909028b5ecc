"""What is measured, summed over workers, and shown over HTTP."""
