"""What the scripts share. README.md beside this file is its map."""
