"""What starts SuperNodes on one machine; to leave this wing out, delete this folder and run.sh."""
