//! The model providers behind the port `engine::port::Model`.
//!
//! [`route`] is what the rest of the server sees: it finds the provider that answers for a model id, as [`settings`]
//! say. [`anthropic`] speaks the Anthropic Messages API, [`openai`] chat completions as OpenAI and many local servers
//! have them, and [`demo`] is a scripted model that needs no network. The first two share [`http`] (requests, time
//! limits, retries, what an error means), [`sse`] (cutting bytes into events) and [`preview`].
//!
//! A provider turns a whole request into a whole answer. Retries that outlast a few seconds, and what becomes of a
//! session meanwhile, are the engine's.

pub mod anthropic;
pub mod demo;
pub mod http;
pub mod openai;
mod preview;
pub mod route;
pub mod settings;
mod sse;
mod tool_input;

pub use route::{ModelInfo, ProviderEnvironment, Router, RouterError};
pub use settings::{ModelSettings, ModelsConfig, Patience, Price, ProviderKind, Thinking};
