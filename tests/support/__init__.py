"""Code that several test files use. A test file never imports another test file."""
