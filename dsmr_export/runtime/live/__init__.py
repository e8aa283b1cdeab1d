"""Playing live: MIDI in, MIDI out, and a model that remembers everything between."""
