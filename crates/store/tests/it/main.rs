//! The stores against the contract of `engine::contract`, and what is each one's own.

mod clock;
mod memory;
mod postgres;
mod redis;
mod sqlite;
