//! The subcommands of `agent-service`, one file each.
