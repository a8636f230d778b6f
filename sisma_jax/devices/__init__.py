"""Where arrays live: meshes, placement, many processes, what a device can do."""
