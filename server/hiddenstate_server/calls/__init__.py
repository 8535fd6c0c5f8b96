"""What clients call, who may, and what they are told."""
