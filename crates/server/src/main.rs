//! Starts `agent-service`: hands the arguments to a subcommand.

fn main() {}
