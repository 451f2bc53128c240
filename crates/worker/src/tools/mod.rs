//! The six tools of the sandbox: the parts that run them.
//!
//! The contract (inputs, result texts, limits) is that of `agent_toolset_20260401`; what a model is told about each
//! tool is `session::toolset`'s. Bash lives in the supervisor, [`crate::sandbox`]; the file tools run in its confined
//! helper.

pub(crate) mod edit;
pub(crate) mod files;
pub(crate) mod find;
pub(crate) mod output;
pub(crate) mod read;
pub(crate) mod workspace;
