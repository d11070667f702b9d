"""What the stages that train share: the loop, the state on disk, stopping, several processes."""
