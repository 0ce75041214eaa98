"""An app whose clients take as long, and send as much, as they are told."""
