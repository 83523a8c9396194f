"""Every number in the README comes from a script here, which prints it with the machine it was measured on."""
