"""What shows and tests the whole from outside, as a person would: by its commands."""
