//! The stores against the contract of `engine::contract`, and what is each one's own.

mod blobs;
mod clock;
mod garbage;
mod memory;
mod postgres;
mod redis;
mod redis_cache;
mod redis_limits;
mod s3;
mod sqlite;
