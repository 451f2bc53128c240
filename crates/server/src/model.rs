//! The model providers behind the port `engine::port::Model`.
