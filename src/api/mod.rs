//! The door: HTTP in, HTTP out, nothing else.
//!
//! `binding.rs` and `rest/` are the two surfaces; `auth.rs` is the only place where a token is compared; `body.rs` is what both read and write.
//! `server.rs` serves a listener, `connection.rs` speaks HTTP on each of its connections, on the threads of `threads.rs` where reads are many, and `hot.rs` answers there what memory holds. No handler knows which role it serves: it holds a `Source` and a `Writer`.

pub mod admin;
pub mod auth;
pub mod binding;
pub mod body;
pub mod budget;
pub mod connection;
pub mod error;
pub mod hot;
pub mod json;
pub mod query;
pub mod rest;
pub mod server;
pub mod threads;
