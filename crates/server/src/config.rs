//! The settings: one YAML file, overridden by the environment, overridden by flags.
