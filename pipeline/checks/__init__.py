"""What is looked at before a stage works."""
