"""What every room stands on: configs, errors, files, commands, processes."""
