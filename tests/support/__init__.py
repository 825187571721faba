"""What several test files share. A test file never imports another one."""
