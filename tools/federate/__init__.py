"""What makes an app of a training script: `command.py` is read first."""
