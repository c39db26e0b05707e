"""One file a command; `pgolf.cli.COMMANDS` lists them."""
