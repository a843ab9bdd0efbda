"""What makes a run a command: options, recipes, run directories, tables."""
