"""What a submission's code weighs: scripts minified and self-extracting, the decoder written out of the packer's own source."""
