"""The guards of speed that CI holds: each must pass on what is good and fail on what is not."""
