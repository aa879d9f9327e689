"""What the blocks of the network are made of: attention, maps, linear layers, and their speed on CPUs."""
