//! The door: HTTP in, HTTP out, nothing else.
//!
//! `binding.rs` and `rest/` are the two surfaces; `auth.rs` is the only place where a token is compared; `body.rs` is what both read and write.
//! `server.rs` serves a listener, behind `guard.rs`. No handler knows which role it serves: it holds a `Source` and a `Writer`.

pub mod admin;
pub mod auth;
pub mod binding;
pub mod body;
pub mod budget;
pub mod error;
pub mod guard;
pub mod json;
pub mod query;
pub mod rest;
pub mod server;
