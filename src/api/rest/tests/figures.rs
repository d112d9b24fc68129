//! How fast a bulk write is checked, in figures. Not a test: nothing is asserted but that it works.
//!
//! `cargo test --release --features figures --lib api::rest::tests::figures -- --nocapture`

use std::time::Instant;

use super::*;

#[expect(clippy::disallowed_methods, reason = "figures are of real time")]
fn now() -> Instant {
    Instant::now()
}

/// Checks a body over and over, without its writing, and prints the best rate.
async fn measure(what: &str, body: String, entries: usize) {
    let world = World::start().await;
    let mut best = Duration::MAX;
    for _ in 0..20 {
        let chunks: Vec<Result<Bytes>> =
            body.as_bytes().chunks(65_536).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        let mut upload = super::super::Upload::new(stream::iter(chunks).boxed(), &HeaderMap::new());
        let start = now();
        let mut room = world.buffers.try_take(0).unwrap();
        let checked = world.rest.check_entries(&mut upload, &mut room).await;
        best = best.min(start.elapsed());
        assert!(checked.is_ok());
    }
    let seconds = best.as_secs_f64();
    println!("{what}: {:.0} entries/s, {:.0} MB/s", entries as f64 / seconds, body.len() as f64 / 1e6 / seconds);
}

#[tokio::test]
async fn bulk_puts_are_checked_so_fast() {
    let entries = |value: &str, more: &str| {
        let entries: Vec<String> =
            (0..10_000).map(|n| format!(r#"{{"key":"user:{n:08}","value":"{value}"{more}}}"#)).collect();
        format!("[{}]", entries.join(","))
    };
    measure("values of 100 bytes", entries(&"x".repeat(100), ""), 10_000).await;
    measure(
        "the same with metadata and TTL",
        entries(&"x".repeat(100), r#","metadata":{"a":1},"expiration_ttl":3600"#),
        10_000,
    )
    .await;
    measure("base64 of 1 KiB", entries(&"QUJD".repeat(342), r#","base64":true"#), 10_000).await;
    let long = |value: &str| format!(r#"[{{"key":"k","value":"{value}","base64":true}}]"#);
    measure("one of base64 of 24 MiB", long(&"QUJD".repeat(8 << 20)), 1).await;
}
