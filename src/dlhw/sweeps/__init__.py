"""Many runs from one command: which there are, and how they are trained."""
