//! The door: HTTP in, HTTP out, nothing else.
//!
//! `binding.rs` and `rest/` are the two surfaces; `auth.rs` is the only place where a token is compared; `body.rs` is what both read and write.
//! No handler knows which role it serves: it holds a `Source` and a `Writer`.

pub mod auth;
pub mod body;
