"""The machine: its track, its notebook host, its disk, the Hub."""
